"""Settings of fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vgan.options import check_choice, option
from vgan.training.config import AUGMENTATIONS


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Fine-tuning of the discriminator's trunk with a newly initialized softmax head (paper section 3.3)."""

    iterations: int = option(200, "number of optimizer steps, the same for every label fraction")
    batch_size: int = option(32, "clips per step")
    learning_rate: float = option(2e-4, "learning rate of Adam for all layers")
    beta1: float = option(0.5, "first moment decay of Adam")
    dropout: float = option(0.5, "probability of dropping a channel before the head; 0 disables dropout")
    weight_decay: float = option(0.0, "weight decay of AdamW for all layers; 0 disables it")
    precision: str = option("fp32", "floating-point precision: fp32, or bf16 (autocast)")
    # Accuracy in percent on four classes of UCF101 (17 held-out videos in each of three folds, 60 steps of 16 clips),
    # of random weights and of a GAN's at 1/8 and at all of the labels: constant rate without augmentation 78, 76 and
    # 70, 88; flip and cosine 78, 86 and 74, 90; with translation too 80, 82 and 82, 90.
    schedule: str = option("cosine", "learning rate schedule: constant, or cosine (0 at the last step)")
    flip: bool = option(
        True, "horizontal flip of training clips with probability 1/2; disable if left and right distinguish classes"
    )
    augment: list[str] = option(
        ["translation"],
        "augmentations of training clips, drawn per clip and step: color, translation, cutout; empty: none",
    )
    l2_penalty: float = option(1000.0, "strength of the L2 penalty of init=logistic, on standardized features")

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.batch_size < 2:  # batch norm needs two clips
            got = f"got {self.iterations} and {self.batch_size}"
            raise ValueError(f"finetune.iterations must be at least 1 and finetune.batch_size at least 2, {got}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"finetune.dropout must be at least 0 and below 1, got {self.dropout}")
        check_choice("finetune.precision", self.precision, ("fp32", "bf16"))
        check_choice("finetune.schedule", self.schedule, ("constant", "cosine"))
        for name in self.augment:
            check_choice("finetune.augment", name, AUGMENTATIONS)
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"finetune.weight_decay must be 0 or more, got {self.weight_decay}")
        if self.l2_penalty <= 0:
            raise ValueError(f"finetune.l2_penalty must be above 0, got {self.l2_penalty}")
