"""Objectives as pure functions: tensors in, sums and weights out."""
