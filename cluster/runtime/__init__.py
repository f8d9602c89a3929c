"""Ray sessions, job submission, placement, and the identity of runs."""
