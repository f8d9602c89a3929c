"""Generation of clips and prediction of futures with trained models."""
