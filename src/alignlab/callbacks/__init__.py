"""Lightning callbacks: checkpoints, evaluation, samples, progress, the start card and the summary."""
