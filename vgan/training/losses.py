"""Terms of the training objective (paper sections 2.1, 2.2, 2.4, 3.2 and 3.4).

The losses depend on D's two logits only through their difference, the margin (real minus fake): the softmax cross
entropy of two logits is the softplus of the negative margin for real clips, of the margin for generated ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vgan.models.discriminator import FAKE, REAL


def logit_margin(logits: Tensor) -> Tensor:
    """Return the real logit minus the fake logit, (B,) float32, from logits (B, 2)."""
    logits = logits.float()
    return logits[:, REAL] - logits[:, FAKE]


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, loss: str = "softmax") -> Tensor:
    """Return the loss of D, a scalar (paper equation 1).

    Args:
        real_logits: (B, 2) of real clips.
        fake_logits: (B, 2) of generated clips.
        loss: softmax, -log D(x) - log(1 - D(G(z))) of equation 1: two cross entropies, summed because the published
            code sums their gradients; or hinge (https://arxiv.org/abs/1705.02894) of the margin.
    """
    real, fake = logit_margin(real_logits), logit_margin(fake_logits)
    if loss == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake_logits: Tensor, loss: str = "softmax") -> Tensor:
    """Return the loss of G, a scalar, from logits (B, 2) of generated clips.

    It is -log D(G(z)), the non-saturating form of equation 1, for softmax; the negative mean margin for hinge.
    """
    fake = logit_margin(fake_logits)
    return -fake.mean() if loss == "hinge" else F.softplus(-fake).mean()


def mask_prior(mask: Tensor, target: float = 0.0) -> Tensor:
    """Return the prior on a mask (B, 1, T, H, W) in [0, 1], a scalar (paper section 2.2).

    With target 0 it is the mean of the mask, a sparsity prior. The paper writes lambda ||m||_1; its code takes the mean
    over batch and voxels, 131,072 times weaker than a sum over a clip, and the reported models come from that code.
    With a target above 0 it is the mean absolute distance of each clip's mean from the target, so that the mask neither
    vanishes nor covers the whole frame.
    """
    if target == 0:
        return mask.float().mean()
    return (mask.float().mean(dim=(1, 2, 3, 4)) - target).abs().mean()


def frame_loss(image: Tensor, video: Tensor, norm: str = "l1") -> Tensor:
    """Return the mean distance over pixels between the first frame of a video and the input image (paper section 3.4).

    Args:
        image: input images (B, 3, H, W) in [-1, 1].
        video: generated clips (B, 3, T, H, W), or static backgrounds (B, 3, 1, H, W).
        norm: l1, absolute, as in the paper's text and the published code; or l2, squared, as in equation 3.
    """
    difference = video[:, :, 0].float() - image
    return difference.abs().mean() if norm == "l1" else difference.square().mean()


def nearest_match_loss(video: Tensor, drawn: Tensor) -> Tensor:
    """Return the mean squared error between each real clip and its nearest generated clip, both (B, 3, T, H, W).

    Every real clip attracts a generated one, so that no mode is dropped: implicit maximum likelihood estimation
    (https://arxiv.org/abs/1809.09087) within a batch, in addition to an adversarial loss
    (https://arxiv.org/abs/2004.03355). The nearest clip is determined on means of blocks, 8 blocks per side.
    """
    sides = [max(side // 8, 1) for side in video.shape[2:]]
    with torch.no_grad():
        real_blocks, generated_blocks = (F.avg_pool3d(clips.float(), sides).flatten(1) for clips in (video, drawn))
        nearest = torch.cdist(real_blocks, generated_blocks).argmin(dim=1).tolist()
    # Stacked, because the gradient of a repeated index is summed in nondeterministic order: runs would not be equal.
    return F.mse_loss(torch.stack([drawn[i] for i in nearest]).float(), video)


def reconstruction_loss(video: Tensor, redrawn: Tensor) -> Tensor:
    """Return the mean squared error of reconstructed clips (B, 3, T, H, W); the paper (section 3.2) names no loss."""
    return F.mse_loss(redrawn.float(), video)


def r1_penalty(real: Tensor, real_logits: Tensor) -> Tensor:
    """Return the mean squared norm of the margin's gradient with respect to real clips, a scalar.

    This is R1 of https://arxiv.org/abs/1801.04406, equation 9, without the factor gamma/2.

    Args:
        real: clips (B, 3, T, H, W) that require a gradient.
        real_logits: their logits (B, 2), with the graph.
    """
    (gradient,) = torch.autograd.grad(logit_margin(real_logits).sum(), real, create_graph=True)
    return gradient.float().square().sum(dim=(1, 2, 3, 4)).mean()
