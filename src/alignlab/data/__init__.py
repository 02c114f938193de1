"""Data: read rows, convert, tokenise and cache them, plan optimizer steps, and collate batches."""
