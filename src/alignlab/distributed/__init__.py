"""Ranks: launch, communication, random states, and stop signals."""
