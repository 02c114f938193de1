"""What happens beside training: checkpoints, evaluation, samples, progress, the summary."""
