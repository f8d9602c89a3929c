"""GAN training on Ray Train workers with DeepSpeed engines."""
