"""The objective, term by term (paper sections 2.1, 2.4 and 3.4).

D's two logits matter only by their margin, real minus fake: softmax cross entropy of two logits is softplus of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vgan.models.discriminator import FAKE, REAL


def logit_margin(logits: Tensor) -> Tensor:
    """How much rather real than fake D takes each clip to be, (B,), from logits (B, 2); float32."""
    logits = logits.float()
    return logits[:, REAL] - logits[:, FAKE]


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, loss: str = "softmax") -> Tensor:
    """What D minimizes, from logits (B, 2) each.

    Args:
        loss: softmax, -log D(x) - log(1 - D(G(z))) of equation 1: two cross entropies, summed as the published code
            sums their gradients; or hinge (https://arxiv.org/abs/1705.02894), of the margin.
    """
    real, fake = logit_margin(real_logits), logit_margin(fake_logits)
    if loss == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake_logits: Tensor, loss: str = "softmax") -> Tensor:
    """What G minimizes, from logits (B, 2): -log D(G(z)), the non-saturating form of equation 1; or hinge's."""
    fake = logit_margin(fake_logits)
    return -fake.mean() if loss == "hinge" else F.softplus(-fake).mean()


def mask_prior(mask: Tensor, target: float = 0.0) -> Tensor:
    """Distance of the mask's mean from `target`; at 0, the mean: sparsity. Of a mask (B, 1, T, H, W) in [0, 1].

    The paper writes lambda ||m||_1; its code takes the mean over batch and voxels, 131,072 times weaker than a sum
    over a clip, and the reported models come from that code. A target above 0 anchors each clip's mean, so that the
    mask neither vanishes nor takes over the picture.
    """
    if target == 0:
        return mask.float().mean()
    return (mask.float().mean(dim=(1, 2, 3, 4)) - target).abs().mean()


def frame_loss(image: Tensor, video: Tensor, norm: str = "l1") -> Tensor:
    """How far a drawn video (B, 3, T, H, W) begins from its input image (B, 3, H, W): a mean over pixels. Of a still
    background (B, 3, 1, H, W) too.

    Args:
        norm: l1, the paper's text and published code; or l2, squared, as in equation 3.
    """
    difference = video[:, :, 0].float() - image
    return difference.abs().mean() if norm == "l1" else difference.square().mean()


def nearest_match_loss(video: Tensor, drawn: Tensor) -> Tensor:
    """Mean squared error of each real clip to the drawn clip nearest it, both (B, 3, T, H, W).

    Every real clip pulls a drawn one its way, so that none is left out: implicit maximum likelihood
    (https://arxiv.org/abs/1809.09087), beside an adversarial loss as in https://arxiv.org/abs/2004.03355, over a batch.
    What is nearest is judged on means of blocks, an eighth of the clip along every side.
    """
    sides = [max(side // 8, 1) for side in video.shape[2:]]
    with torch.no_grad():
        wanted, found = (F.avg_pool3d(clips.float(), sides).flatten(1) for clips in (video, drawn))
        nearest = torch.cdist(wanted, found).argmin(dim=1).tolist()
    # Stacked, because the gradient of an index that repeats is summed in any order: no run would equal another.
    return F.mse_loss(torch.stack([drawn[i] for i in nearest]).float(), video)


def reconstruction_loss(video: Tensor, redrawn: Tensor) -> Tensor:
    """Mean squared error of an autoencoder's clips (B, 3, T, H, W). The paper does not name its loss."""
    return F.mse_loss(redrawn.float(), video)


def r1_penalty(real: Tensor, real_logits: Tensor) -> Tensor:
    """Mean squared norm of the margin's gradient on real clips (B, 3, T, H, W), which must require a gradient.

    R1 of https://arxiv.org/abs/1801.04406, equation 9, without its factor gamma/2.
    """
    (gradient,) = torch.autograd.grad(logit_margin(real_logits).sum(), real, create_graph=True)
    return gradient.float().square().sum(dim=(1, 2, 3, 4)).mean()
