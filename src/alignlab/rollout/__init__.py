"""Rollouts: sampling completions, rewarding them, and turning them into optimizer steps."""
