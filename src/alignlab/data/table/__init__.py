"""Tokenised rows on the disk: built once, checked, counted."""
