"""What a model is worth on rows of data, with confidence intervals."""
