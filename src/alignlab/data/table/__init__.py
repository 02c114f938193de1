"""Tables of tokenised rows on disk: built once, verified, counted."""
