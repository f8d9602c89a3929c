"""Which of two videos is more realistic? Trials, and what votes on them say (paper section 3.2)."""
