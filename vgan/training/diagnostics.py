"""Is adversarial training well? Numbers of one step's clips, and warnings in words.

D's and G's losses do not tell: they stay flat for days after D has won.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vgan.models.generator import GeneratorOutput

SURE = 0.99  # share of clips that D tells right on both sides
COLLAPSED = 0.01  # distance of the mask's mean from 0 or 1
ALIKE = 0.1  # spread of drawn clips over that of real ones


@torch.no_grad()
def training_diagnostics(real: Tensor, streams: GeneratorOutput) -> dict[str, Tensor]:
    """Scalars by metric name, of real clips and of clips drawn in the same step, (B, 3, T, H, W) each.

    samples/diversity: standard deviation over the batch, of drawn clips over that of real ones; NaN for one clip.
    samples/motion: mean difference of neighbouring frames, of drawn clips over that of real ones.
    mask/mean, mask/entropy (nats; at most log 2).
    mask/motion_share: share of the drawn motion that the mask lets through, 0..1; chance is mask/mean.
    """
    video = streams.video.detach().float()
    motion = video.diff(dim=2).abs()  # (B, 3, T-1, H, W)
    found = {
        "samples/diversity": _spread(video) / _spread(real.float()),
        "samples/motion": motion.mean() / real.float().diff(dim=2).abs().mean(),
    }
    if streams.mask is not None:
        mask = streams.mask.detach().float()
        found["mask/mean"] = mask.mean()
        inside = mask.clamp(1e-6, 1 - 1e-6)
        found["mask/entropy"] = -(inside * inside.log() + (1 - inside) * (1 - inside).log()).mean()
        found["mask/motion_share"] = (motion * mask[:, :, 1:]).sum() / motion.sum()
    return found


def _spread(clips: Tensor) -> Tensor:
    return clips.std(dim=0, correction=0).mean()


def diagnose(values: Mapping[str, float]) -> dict[str, str]:
    """What is wrong, by short name, as sentences for a person; from the metrics of one logged step."""
    found = {}
    both = [values.get(f"discriminator/accuracy_{side}", 0.0) for side in ("real", "fake")]
    if min(both) >= SURE:
        found["discriminator_won"] = (
            "D tells every clip right, so G learns little from it: try preset=stable, or more clips"
        )
    mask = values.get("mask/mean")
    if mask is not None and mask < COLLAPSED:
        found["mask_empty"] = (
            "the mask is near 0 everywhere: nothing moves; lower objective.mask_weight, or set mask_target"
        )
    if mask is not None and mask > 1 - COLLAPSED:
        found["mask_full"] = (
            "the mask is near 1 everywhere: the background is unused; raise objective.mask_weight, or set mask_target"
        )
    if "loss/generator" in values and values.get("samples/diversity", 1.0) < ALIKE:
        found["samples_alike"] = "the drawn clips of a step look alike: G has collapsed; try preset=stable"
    return found
