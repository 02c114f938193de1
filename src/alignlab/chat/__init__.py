"""Talk to a trained model."""
