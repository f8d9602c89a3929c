"""Diagnostics of adversarial training: metrics of the clips of one step, and warnings.

The losses of D and G are no indication: they stay flat for days after D classifies every clip correctly.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vgan.models.generator import GeneratorOutput

SURE = 0.99  # accuracy of D on real and on generated clips
COLLAPSED = 0.01  # distance of the mask's mean from 0 or 1
ALIKE = 0.1  # standard deviation over the batch, of generated clips over that of real clips


@torch.no_grad()
def training_diagnostics(real: Tensor, streams: GeneratorOutput) -> dict[str, Tensor]:
    """Compute scalars by metric name from the real and generated clips of one step, (B, 3, T, H, W) each.

    samples/diversity: standard deviation over the batch, of generated clips over that of real clips; NaN for one clip.
    samples/motion: mean absolute difference of adjacent frames, of generated clips over that of real clips.
    mask/mean: mean of the mask, 0..1.
    mask/entropy: mean binary entropy of the mask, nats, at most log 2.
    mask/motion_share: motion of the generated clips weighted by the mask, over all motion, 0..1; mask/mean if the mask
        is independent of the motion.
    """
    video = streams.video.detach().float()
    motion = video.diff(dim=2).abs()  # (B, 3, T-1, H, W)
    metrics = {
        "samples/diversity": _mean_deviation(video) / _mean_deviation(real.float()),
        "samples/motion": motion.mean() / real.float().diff(dim=2).abs().mean(),
    }
    if streams.mask is not None:
        mask = streams.mask.detach().float()
        metrics["mask/mean"] = mask.mean()
        inside = mask.clamp(1e-6, 1 - 1e-6)
        metrics["mask/entropy"] = -(inside * inside.log() + (1 - inside) * (1 - inside).log()).mean()
        metrics["mask/motion_share"] = (motion * mask[:, :, 1:]).sum() / motion.sum()
    return metrics


def _mean_deviation(clips: Tensor) -> Tensor:
    """Return the mean over pixels of the standard deviation over the batch."""
    return clips.std(dim=0, correction=0).mean()


def diagnose(values: Mapping[str, float]) -> dict[str, str]:
    """Return warnings by short name, one sentence each, from the metrics of one logged step."""
    messages = {}
    accuracies = [values.get(f"discriminator/accuracy_{side}", 0.0) for side in ("real", "fake")]
    if min(accuracies) >= SURE:
        messages["discriminator_won"] = (
            "D classifies nearly every clip correctly, so G learns little from it: try preset=stable, or more clips"
        )
    mask = values.get("mask/mean")
    if mask is not None and mask < COLLAPSED:
        messages["mask_empty"] = (
            "the mask is near 0 everywhere, nothing moves: lower objective.mask_weight, or set mask_target"
        )
    if mask is not None and mask > 1 - COLLAPSED:
        messages["mask_full"] = (
            "the mask is near 1 everywhere, the background is unused: raise objective.mask_weight, or set mask_target"
        )
    if "loss/generator" in values and values.get("samples/diversity", 1.0) < ALIKE:
        messages["samples_alike"] = (
            "the generated clips of a step are nearly identical, G has collapsed: try preset=stable"
        )
    return messages
