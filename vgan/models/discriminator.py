"""Discriminator: the reverse of the generator's foreground stream (paper section 2.3)."""

from __future__ import annotations

from torch import Tensor, nn

from vgan.models.config import ModelConfig
from vgan.models.layers import WIDTHS, apply_spectral_norm, encoder_stack, initialize

REAL, FAKE = 0, 1  # indices of the two logits


class Discriminator(nn.Module):
    """Classifier of clips as real or generated, with two logits (paper section 2.3).

    11,057,858 parameters at base 64. The trunk without the head is used for transfer (section 3.3).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        base = config.base_width * (2 if config.wide else 1)
        widths = [base * w for w in reversed(WIDTHS)]
        self.trunk = encoder_stack(3, [3, *widths], slope=0.2, norm=config.discriminator_norm == "batch")
        self.head = nn.Conv3d(widths[-1], 2, config.code_shape)
        self.apply(initialize)
        if config.discriminator_norm == "spectral":
            apply_spectral_norm(self)

    def forward(self, video: Tensor) -> Tensor:
        """Compute the logits (B, 2), at REAL and FAKE, of clips (B, 3, T, H, W) in [-1, 1]."""
        return self.head(self.trunk(video)).flatten(1)  # trunk: (B, 8 base, T/16, H/16, W/16)
