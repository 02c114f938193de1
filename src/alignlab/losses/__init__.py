"""Losses as pure functions of tensors, with the units of their means."""
