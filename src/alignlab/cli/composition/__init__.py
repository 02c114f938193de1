"""Composition of the config from the command line by Hydra, with errors in plain words."""
