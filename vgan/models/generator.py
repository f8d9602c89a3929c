"""One-stream and two-stream generators (paper section 2.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vgan.models.config import ModelConfig
from vgan.models.layers import (
    WIDTHS,
    decoder_stack,
    doubling_kernel,
    initialize,
    stem,
    to_channels_last,
    transposed_conv_by_blocks,
    under_autocast,
    upsample_layer,
)


class GeneratorOutput(NamedTuple):
    """Output of a generator: the video, and the streams that it is composed of (paper equation 2).

    Values are in [-1, 1], those of the mask in [0, 1]. A one-stream generator has only the video, the rest is None.
    """

    video: Tensor  # (B, 3, T, H, W), the composite
    foreground: Tensor | None  # (B, 3, T, H, W)
    mask: Tensor | None  # (B, 1, T, H, W)
    background: Tensor | None  # (B, 3, 1, H, W), replicated over time


class Heads(nn.Module):
    """Output layers of foreground and mask, computed as one convolution of the trunk's last map."""

    def __init__(self, cin: int, upsample: str) -> None:
        super().__init__()
        self.rgb, self.mask = upsample_layer(3, cin, 3, upsample), upsample_layer(3, cin, 1, upsample)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute foreground (B, 3, T, H, W) and mask (B, 1, T, H, W) from the last map x (B, C, T/2, H/2, W/2)."""
        weight = torch.cat([doubling_kernel(self.rgb), doubling_kernel(self.mask)], 1)
        bias = torch.cat([self.rgb.bias, self.mask.bias])  # type: ignore[list-item]
        both = (
            transposed_conv_by_blocks(x, weight, bias)
            if under_autocast(x)
            else F.conv_transpose3d(x, weight, bias, 2, 1)
        )
        # Contiguous channels: the elementwise operations that follow are slow on three of four interleaved channels.
        rgb, mask = both.contiguous().split([3, 1], 1)
        return torch.tanh(rgb), torch.sigmoid(mask)


class OneStreamGenerator(nn.Module):
    """Foreground stream without a mask (paper section 2.2). 12,663,619 parameters at base 64."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = [config.base_width * w for w in WIDTHS]
        self.stem = stem(3, config.z_size, widths[0], config.code_shape)
        self.trunk = decoder_stack(3, widths, config.upsample)
        self.rgb = upsample_layer(3, widths[-1], 3, config.upsample)
        self.apply(initialize)

    def forward(self, z: Tensor) -> GeneratorOutput:
        """Generate clips from noise z (B, Z)."""
        x = self.trunk(to_channels_last(self.stem(z[:, :, None, None, None])))  # (B, base, T/2, H/2, W/2)
        return GeneratorOutput(torch.tanh(self.rgb(x)), None, None, None)


class TwoStreamGenerator(nn.Module):
    """Two-stream generator G(z) = m(z) * f(z) + (1 - m(z)) * b(z), paper equation 2, with the same z for both streams.

    At base 64, 32 frames and 64 pixels the layers are those of the published code, with 16,245,383 parameters. Other
    lengths and sizes change only the first kernel, which is (T/16, H/16, W/16).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = [config.base_width * w for w in WIDTHS]
        self.stem = stem(3, config.z_size, widths[0], config.code_shape)
        self.trunk = decoder_stack(3, widths, config.upsample)
        self.heads = Heads(widths[-1], config.upsample)
        self.background = nn.Sequential(
            stem(2, config.z_size, widths[0], config.code_shape[1:]),
            decoder_stack(2, widths, config.upsample),
            upsample_layer(2, widths[-1], 3, config.upsample),
            nn.Tanh(),
        )
        self.apply(initialize)

    def forward(self, z: Tensor) -> GeneratorOutput:
        """Generate clips from noise z (B, Z)."""
        x = self.trunk(to_channels_last(self.stem(z[:, :, None, None, None])))  # (B, base, T/2, H/2, W/2)
        foreground, mask = self.heads(x)  # (B, 3, T, H, W), (B, 1, T, H, W)
        background = self.background(z[:, :, None, None])[:, :, None]  # (B, 3, 1, H, W)
        return composite(foreground, mask, background)


def composite(foreground: Tensor, mask: Tensor, background: Tensor) -> GeneratorOutput:
    """Compose the video m * f + (1 - m) * b (paper equation 2).

    Args:
        foreground: f, (B, 3, T, H, W) in [-1, 1].
        mask: m, (B, 1, T, H, W) in [0, 1]; the background is visible where it is 0.
        background: b, (B, 3, 1, H, W) in [-1, 1], replicated over time.
    """
    return GeneratorOutput(background + mask * (foreground - background), foreground, mask, background)
