"""Optimisation: reduction of losses, learning rate schedules, throughput, and handling of non-finite steps."""
