"""Sweeps (``-m``): each job runs in its own processes, finished jobs are skipped, and a table lists the results."""
