"""Networks of the paper, and models as files."""
