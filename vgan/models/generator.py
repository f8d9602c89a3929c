"""The two-stream generator: moving foreground, static background, and the mask between them (paper section 2.2)."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn

from vgan.config import ModelConfig
from vgan.models.layers import WIDTHS, initialize, up2d, up3d


class Streams(NamedTuple):
    """What the generator draws and what it drew it from. All in [-1, 1] but the mask in [0, 1]."""

    video: Tensor  # (B, 3, T, H, W), the composite
    foreground: Tensor  # (B, 3, T, H, W)
    mask: Tensor  # (B, 1, T, H, W)
    background: Tensor  # (B, 3, 1, H, W), the same for every t


class TwoStreamGenerator(nn.Module):
    """G(z) = m(z) * f(z) + (1 - m(z)) * b(z), paper equation 2, with one z for both streams.

    At base 64, 32 frames and 64 pixels it is the published layer table: 16,245,383 parameters. Other lengths and
    sizes change only the first kernel, which is (T/16, H/16, W/16).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = [config.base * w for w in WIDTHS]
        stem = (config.num_frames // 16, config.size // 16, config.size // 16)
        self.trunk = nn.Sequential(
            nn.ConvTranspose3d(config.z_size, widths[0], stem),
            nn.BatchNorm3d(widths[0]),
            nn.ReLU(inplace=True),
            *(up3d(cin, cout) for cin, cout in pairwise(widths)),
        )
        self.rgb = nn.Sequential(nn.ConvTranspose3d(widths[-1], 3, 4, 2, 1), nn.Tanh())
        self.mask = nn.Sequential(nn.ConvTranspose3d(widths[-1], 1, 4, 2, 1), nn.Sigmoid())
        self.background = nn.Sequential(
            nn.ConvTranspose2d(config.z_size, widths[0], stem[1:]),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
            *(up2d(cin, cout) for cin, cout in pairwise(widths)),
            nn.ConvTranspose2d(widths[-1], 3, 4, 2, 1),
            nn.Tanh(),
        )
        self.apply(initialize)

    def forward(self, z: Tensor) -> Streams:
        """Draw clips from noise z (B, Z)."""
        x = self.trunk(z[:, :, None, None, None])  # (B, base, T/2, H/2, W/2)
        foreground = self.rgb(x)  # (B, 3, T, H, W)
        mask = self.mask(x)  # (B, 1, T, H, W)
        background = self.background(z[:, :, None, None])[:, :, None]  # (B, 3, 1, H, W)
        return Streams(mask * foreground + (1 - mask) * background, foreground, mask, background)
