"""Check a composed config, and build the objects that it describes."""
