"""Model card and demo report."""
