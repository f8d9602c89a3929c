"""Losses, training step, optimizer engines and diagnostics of the GAN."""
