"""From rows to tokens, supervised spans and templates."""
