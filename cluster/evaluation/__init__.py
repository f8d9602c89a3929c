"""Evaluation of models against real clips, and inspection of hidden units."""
