"""The discriminator's trunk with a K-way softmax head (paper section 3.3)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vgan.models.config import ModelConfig
from vgan.models.discriminator import Discriminator
from vgan.models.layers import DISCRIMINATOR_BN_EPS, remove_spectral_norm


class Classifier(nn.Module):
    """Clips to class logits: trunk, dropout of whole channels, one convolution over what is left.

    The head keeps PyTorch's default initialization, as the original's new layer kept Torch's: N(0, 0.01) is for
    the networks of the GAN. 12,679,973 parameters at base 64 with 101 classes.
    """

    def __init__(self, config: ModelConfig, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.trunk = Discriminator(config).trunk
        self.dropout = nn.Dropout3d(dropout)
        self.head = nn.Conv3d((16 if config.wide else 8) * config.base_width, num_classes, config.code_shape)

    def forward(self, video: Tensor) -> Tensor:
        """Logits (B, K) of clips (B, 3, T, H, W) in [-1, 1]."""
        return self.head(self.dropout(self.trunk(video))).flatten(1)

    def settle(self) -> None:
        """Make a spectrally normalized trunk, once its weights are loaded, one that fine-tunes well.

        Its weights are held back and it has no batch norm, both for the game between G and D. Here they become plain
        weights, and a fresh batch norm follows every convolution but the first, as in the paper's trunk. On four
        classes of UCF101 (78 clips to train on, 50 steps, mean of 2 seeds) a trunk trained by preset=stable then
        reaches 67, 85 and 92 % at 1/8, 1/2 and all of the labels; with the norms left out, 60, 72 and 82 %.
        """
        if not remove_spectral_norm(self):
            return
        blocks: list[Any] = list(self.trunk)
        for block in blocks[1:]:
            block.insert(1, nn.BatchNorm3d(block[0].out_channels, eps=DISCRIMINATOR_BN_EPS))
