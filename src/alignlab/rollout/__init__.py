"""Completions sampled from a model."""
