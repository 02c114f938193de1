"""What flows through a run: rows, batches, loss terms, and the packed layout."""
