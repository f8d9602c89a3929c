"""Evaluation metrics: feature extractors, distances, statistics of clips and detection of copies."""
