"""Initializations that a sweep compares."""

from __future__ import annotations

INITS = {
    "vgan": "trunk of the trained GAN's discriminator, fine-tuned",
    "logistic": "logistic regression on the last features of the trained trunk",
    "untrained": "initial weights of GAN training",
    "random": "PyTorch's default initialization",
    "random_torch": "Torch7's default initialization, as in the random network of the original code",
}
PRETRAINED = frozenset({"vgan", "logistic"})
