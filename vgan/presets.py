"""Named sets of settings, of training and of fine-tuning; every other setting keeps its default."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from vgan.models.config import ModelConfig
from vgan.training.config import ObjectiveConfig
from vgan.transfer.config import FinetuneConfig

PRESETS: dict[str, dict[str, Any]] = {
    # The paper where it says something, its code where the paper is silent: the defaults.
    "paper": {},
    # The published code where it says something else than the paper (its main_conditional.lua).
    "reference": {"model.future_encoder": "reference", "objective.first_frame_loss": "l1"},
    "stable": {
        "model.discriminator_norm": "spectral",  # https://arxiv.org/abs/1802.05957
        "model.upsample": "resize",  # https://distill.pub/2016/deconv-checkerboard/
        "objective.loss": "hinge",  # https://arxiv.org/abs/1705.02894
        # An anchored prior: else the mask ends up lit where nothing moves, with people in the still background.
        "objective.mask_weight": 1.0,
        "objective.mask_target": 0.2,
        # Else only the first frame is the image's, drawn by the foreground, and another scene follows.
        "objective.background_weight": 10.0,
        "objective.horizontal_flip": True,
    },
}


FINETUNE_PRESETS: dict[str, dict[str, Any]] = {
    # The published code's (its main_ucf.lua).
    "reference": {
        "finetune.iterations": 1000,
        "finetune.batch_size": 256,
        "finetune.precision": "fp32",
        "finetune.schedule": "constant",
        "finetune.flip": False,
        "finetune.augment": [],
    },
    # Chosen on groups held out from UCF101's training list: the defaults, where the figures are.
    "modern": {},
}


def preset_overrides(name: str, keys: Container[str]) -> dict[str, Any]:
    """What a preset says of a job's settings: every one that any preset of that job names; none if there is no such.

    Args:
        keys: of all the job's settings, by which its presets are known.
    """
    presets = FINETUNE_PRESETS if "finetune.iterations" in keys else PRESETS
    if name not in presets:
        return {}
    defaults = {"model": ModelConfig(), "objective": ObjectiveConfig(), "finetune": FinetuneConfig()}
    named = {key: key.split(".") for values in presets.values() for key in values}
    return {key: getattr(defaults[group], option) for key, (group, option) in named.items()} | presets[name]
