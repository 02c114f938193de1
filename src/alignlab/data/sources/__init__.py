"""Sources of rows: files, the hub, a registry, a mixture, generated problems."""
