"""Rewards: functions from completions to one number each, and how they are run and combined."""
