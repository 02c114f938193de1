"""The folder of a run: its files and checkpoints, and the loggers that write to it and to trackers."""
