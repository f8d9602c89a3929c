"""Future generation: two-stream generators whose input is an image in place of noise (paper section 3.4)."""

from __future__ import annotations

from torch import Tensor, nn

from vgan.models.config import ModelConfig
from vgan.models.generator import GeneratorOutput, Heads, TwoStreamGenerator, composite
from vgan.models.layers import WIDTHS, decoder_stack, encoder_stack, initialize, stem, to_channels_last, upsample_layer


class FutureGenerator(nn.Module):
    """Generator of the clip that starts with an image, as described in the paper (section 3.4).

    Five convolutions encode the image as the latent code, the input of the two-stream generator. The discriminator is
    unchanged.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = [config.base_width * w for w in reversed(WIDTHS)]
        code = nn.Conv2d(widths[-1], config.z_size, config.code_shape[1:])
        self.encoder = nn.Sequential(encoder_stack(2, [3, *widths], slope=0.0), code)
        self.generator = TwoStreamGenerator(config)
        self.encoder.apply(initialize)

    def forward(self, image: Tensor) -> GeneratorOutput:
        """Generate clips from their first frames (B, 3, H, W) in [-1, 1]."""
        z = self.encoder(image).flatten(1)  # (B, Z)
        return self.generator(z)


class WideFutureGenerator(nn.Module):
    """Generator of the clip that starts with an image, as in the published code (main_conditional.lua).

    Four convolutions encode the image as a feature map, not a code, and every layer is twice as wide as in the paper.
    68,216,455 parameters at base 64, of which the encoder has 11,021,696.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = [2 * config.base_width * w for w in WIDTHS]
        self.encoder = encoder_stack(2, [3, *reversed(widths)], slope=0.0)
        self.stem = stem(3, widths[0], widths[0], (config.code_shape[0], 1, 1))
        self.trunk = decoder_stack(3, widths, config.upsample)
        self.heads = Heads(widths[-1], config.upsample)
        self.background = nn.Sequential(
            decoder_stack(2, widths, config.upsample), upsample_layer(2, widths[-1], 3, config.upsample), nn.Tanh()
        )
        self.apply(initialize)

    def forward(self, image: Tensor) -> GeneratorOutput:
        """Generate clips from their first frames (B, 3, H, W) in [-1, 1]."""
        code = self.encoder(image)  # (B, 16 base, H/16, W/16)
        x = self.trunk(to_channels_last(self.stem(code[:, :, None])))  # (B, 2 base, T/2, H/2, W/2)
        foreground, mask = self.heads(x)  # (B, 3, T, H, W), (B, 1, T, H, W)
        return composite(foreground, mask, self.background(code)[:, :, None])
