"""Weights: loaded, adapted, scored, exported."""
