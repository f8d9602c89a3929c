"""Estimates of hours, bytes and money for a corpus and a training run."""
