"""Sweeps (``-m``): each job in processes of its own, what came of them in one table, and nothing done twice."""
