"""Faults injected into runs, configs and data: ``python -m tests.faults`` counts what came of them."""
