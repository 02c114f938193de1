"""Ranks: how they start, speak, stop, and share the work."""
