"""Two-alternative preference study of realism (paper section 3.2): trials and statistics of votes."""
