"""What people see of a run and what survives it: run folder, checkpoints, records, curves, trackers, schedules."""
