"""Data types that packages share: rows, batches, loss terms, and the packed layout."""
