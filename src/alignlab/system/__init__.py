"""Files, paths, secrets and processes of the machine."""
