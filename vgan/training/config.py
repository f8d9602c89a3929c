"""Settings of the objective and its optimizer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vgan.options import check_choice, option

AUGMENTATIONS = ("color", "translation", "cutout")  # see vgan.training.augment


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Losses and optimizer (paper section 2.4)."""

    loss: str = option(
        "softmax",
        "adversarial loss: softmax (cross entropy, as in the paper) or hinge (https://arxiv.org/abs/1705.02894)",
    )
    mask_weight: float = option(
        0.1,
        "weight (lambda) of the prior on the mean of the mask; future_encoder=reference needs mask_target",
    )
    mask_target: float = option(0.0, "target of the mask's mean, 0..1; 0: sparse mask, as in the paper")
    first_frame_loss: str = option(
        "l2",
        "loss between input and first generated frame of the future model: l2 (paper, eq. 3) or l1 (published code)",
    )
    first_frame_weight: float = option(10.0, "weight (lambda) of the frame loss, a mean over pixels; 0 disables it")
    background_weight: float = option(
        0.0,
        "weight of the frame loss between input and background, future model only; 0 disables it, as in the paper",
    )
    nearest_match_weight: float = option(
        0.0,
        "weight of the error of real clips to the nearest generated clip per worker, GANs without input; 0 disables it",
    )
    r1_weight: float = option(0.0, "weight (gamma/2) of R1, D's gradient penalty on real clips; 0 disables it")
    augment: list[str] = option(
        [], "augmentations of D's inputs, real and generated: color, translation, cutout; empty: none"
    )
    horizontal_flip: bool = option(False, "horizontal flip of real clips with probability 1/2")
    learning_rate: float = option(2e-4, "learning rate of Adam")
    discriminator_lr_ratio: float = option(1.0, "ratio of D's learning rate to learning_rate")
    beta1: float = option(0.5, "first moment decay of Adam (the momentum term of the paper)")
    beta2: float = option(0.999, "second moment decay of Adam")

    def __post_init__(self) -> None:
        check_choice("objective.loss", self.loss, ("softmax", "hinge"))
        check_choice("objective.first_frame_loss", self.first_frame_loss, ("l1", "l2"))
        for name in self.augment:
            check_choice("objective.augment", name, AUGMENTATIONS)
        for key in ("learning_rate", "discriminator_lr_ratio"):
            if not 0 < getattr(self, key) < math.inf:
                raise ValueError(f"objective.{key} must be above 0, got {getattr(self, key)}")
        for key in ("mask_weight", "first_frame_weight", "background_weight", "nearest_match_weight", "r1_weight"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"objective.{key} must be 0 or more, got {getattr(self, key)}")
        if not 0 <= self.mask_target <= 1:
            raise ValueError(f"objective.mask_target must be in 0..1, got {self.mask_target}")
        for key in ("beta1", "beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"objective.{key} must be at least 0 and below 1, got {getattr(self, key)}")
