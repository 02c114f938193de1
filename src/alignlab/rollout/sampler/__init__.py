"""The sampler that uses the policy itself (``rollout=hf``)."""
