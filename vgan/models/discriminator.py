"""The discriminator: the generator's foreground stream in reverse (paper section 2.3)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from vgan.config import ModelConfig
from vgan.models.layers import WIDTHS, down3d, initialize

REAL, FAKE = 0, 1  # positions of the two logits


class Discriminator(nn.Module):
    """Clips to two logits, real and fake. 11,057,858 parameters at base 64; the trunk alone is what transfer keeps."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = [config.base * w for w in reversed(WIDTHS)]
        self.trunk = nn.Sequential(
            down3d(3, widths[0], norm=False),
            *(down3d(cin, cout, norm=True) for cin, cout in pairwise(widths)),
        )
        self.head = nn.Conv3d(widths[-1], 2, (config.num_frames // 16, config.size // 16, config.size // 16))
        self.apply(initialize)

    def forward(self, video: Tensor) -> Tensor:
        """Logits (B, 2) of clips (B, 3, T, H, W) in [-1, 1]."""
        return self.head(self.trunk(video)).flatten(1)  # trunk: (B, 8 base, T/16, H/16, W/16)
