"""Rows: read, converted, tokenised, cached, planned, collated."""
