"""From token rows to planned optimizer steps."""
