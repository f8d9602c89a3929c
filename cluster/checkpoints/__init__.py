"""Checkpoints of training runs: format, upload, lineage."""
