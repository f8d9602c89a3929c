"""The objective, term by term (paper sections 2.1 and 2.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vgan.models.discriminator import FAKE, REAL


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """What D minimizes: -log D(x) - log(1 - D(G(z))), equation 1, from logits (B, 2) each.

    The two cross-entropies are summed, as the published code sums their gradients.
    """
    return _cross_entropy(real_logits, REAL) + _cross_entropy(fake_logits, FAKE)


def generator_loss(fake_logits: Tensor) -> Tensor:
    """What G minimizes: -log D(G(z)), the non-saturating form of equation 1, from logits (B, 2)."""
    return _cross_entropy(fake_logits, REAL)


def mask_prior(mask: Tensor) -> Tensor:
    """Sparsity of the mask (B, 1, T, H, W) in [0, 1]: its mean.

    The paper writes lambda ||m||_1; its code takes the mean over batch and voxels, 131,072 times weaker than a sum
    over a clip, and the reported models come from that code.
    """
    return mask.mean()


def _cross_entropy(logits: Tensor, target: int) -> Tensor:
    labels = torch.full((len(logits),), target, dtype=torch.long, device=logits.device)
    return F.cross_entropy(logits.float(), labels)
