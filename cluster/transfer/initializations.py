"""Initializations that a sweep compares."""

from __future__ import annotations

INITS = {
    "vgan": "the trained GAN's trunk, fine-tuned",
    "logistic": "logistic regression on the trained trunk's last features",
    "untrained": "weights as GAN training starts with",
    "random": "PyTorch's default weights",
    "random_torch": "Torch7's default weights, as the original's random network had them",
}
PRETRAINED = frozenset({"vgan", "logistic"})
