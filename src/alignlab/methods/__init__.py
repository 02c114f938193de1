"""Training methods, one per file; ``base.py`` has their base class."""
