"""Tokenise rows: chat templates, supervised spans, truncation."""
