"""Files, paths, credentials and processes."""
