"""Runs an evaluation: a trained model on rows of data, and its results in files."""
