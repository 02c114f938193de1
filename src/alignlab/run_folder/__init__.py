"""What a run leaves on the disk and in trackers."""
