"""Scene labels of clips from a Places365 classifier."""
