"""From sums to a step: reduction, schedules, throughput, and steps that changed nothing."""
