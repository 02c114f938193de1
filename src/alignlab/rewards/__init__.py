"""What a completion is worth: text in, floats out."""
