"""Command-line jobs: one module per verb."""
