"""Memory, time and communication of a run, computed from its config without its weights."""
