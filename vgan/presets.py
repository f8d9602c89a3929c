"""Named sets of model and objective settings; every other setting keeps its default."""

from __future__ import annotations

from typing import Any

from vgan.config import ModelConfig, ObjectiveConfig

PRESETS: dict[str, dict[str, Any]] = {
    # The paper where it says something, its code where the paper is silent: the defaults.
    "paper": {},
    # The published code where it says something else than the paper (its main_conditional.lua).
    "reference": {"model.future": "reference", "objective.frame_loss": "l1"},
    "stable": {
        "model.discriminator_norm": "spectral",  # https://arxiv.org/abs/1802.05957
        "model.upsample": "resize",  # https://distill.pub/2016/deconv-checkerboard/
        "objective.loss": "hinge",  # https://arxiv.org/abs/1705.02894
        "objective.learning_rate": 4e-4,
        "objective.learning_rate_ratio": 2.0,  # two time scales, https://arxiv.org/abs/1706.08500
        # An anchored prior: else the mask ends up lit where nothing moves, with people in the still background.
        "objective.mask_weight": 1.0,
        "objective.mask_target": 0.2,
        # Else only the first frame is the image's, drawn by the foreground, and another scene follows.
        "objective.background_weight": 10.0,
        "objective.flip": True,
    },
}


def settings_of(name: str) -> dict[str, Any]:
    """Every setting that any preset names, as the preset of this name has it; none if there is no such preset."""
    if name not in PRESETS:
        return {}
    defaults = {"model": ModelConfig(), "objective": ObjectiveConfig()}
    named = {key: key.split(".") for values in PRESETS.values() for key in values}
    return {key: getattr(defaults[group], option) for key, (group, option) in named.items()} | PRESETS[name]
