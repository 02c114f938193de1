"""The sampler over the weights in training."""
