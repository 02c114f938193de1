"""Hydra as the command line sees it: composing, and saying what is wrong with what was typed."""
