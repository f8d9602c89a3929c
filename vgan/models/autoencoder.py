"""Autoencoder of the baseline (paper section 3.2)."""

from __future__ import annotations

from torch import Tensor, nn

from vgan.models.config import ModelConfig
from vgan.models.generator import GeneratorOutput, TwoStreamGenerator
from vgan.models.layers import WIDTHS, encoder_stack, initialize


class Autoencoder(nn.Module):
    """Encoder of clips to codes, and decoder of codes to clips (paper section 3.2).

    The encoder is the trunk of the discriminator with a last layer that outputs the code of length Z; it has 12,663,588
    parameters at base 64. The decoder is the two-stream generator.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = [config.base_width * w for w in reversed(WIDTHS)]
        code = nn.Conv3d(widths[-1], config.z_size, config.code_shape)
        self.encoder = nn.Sequential(encoder_stack(3, [3, *widths], slope=0.2), code)
        self.decoder = TwoStreamGenerator(config)
        self.encoder.apply(initialize)

    def forward(self, video: Tensor) -> GeneratorOutput:
        """Reconstruct clips (B, 3, T, H, W) in [-1, 1] from their codes."""
        return self.decoder(self.encode(video))

    def encode(self, video: Tensor) -> Tensor:
        """Encode clips (B, 3, T, H, W) in [-1, 1] as codes (B, Z)."""
        return self.encoder(video).flatten(1)
