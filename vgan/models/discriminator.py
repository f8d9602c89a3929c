"""The discriminator: the generator's foreground stream in reverse (paper section 2.3)."""

from __future__ import annotations

from torch import Tensor, nn

from vgan.models.config import ModelConfig
from vgan.models.layers import WIDTHS, apply_spectral_norm, encoder_stack, initialize

REAL, FAKE = 0, 1  # positions of the two logits


class Discriminator(nn.Module):
    """Clips to two logits, real and fake. 11,057,858 parameters at base 64; the trunk alone is what transfer keeps."""

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
        """Logits (B, 2) of clips (B, 3, T, H, W) in [-1, 1]."""
        return self.head(self.trunk(video)).flatten(1)  # trunk: (B, 8 base, T/16, H/16, W/16)
