"""Compose any alignment method, model, adapter, strategy and data from one line."""
