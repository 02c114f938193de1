"""Models: load weights, attach adapters, score batches, export."""
