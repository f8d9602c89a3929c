"""Classifier with the trunk of the discriminator and a K-way softmax head (paper section 3.3)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vgan.models.config import ModelConfig
from vgan.models.discriminator import Discriminator
from vgan.models.layers import DISCRIMINATOR_BN_EPS, remove_spectral_norm


class Classifier(nn.Module):
    """Classifier of clips: trunk, channel dropout, one convolution over the last map (paper section 3.3).

    The head has PyTorch's default initialization, as the new layer of the published code has Torch's; N(0, 0.01) is
    used for the networks of the GAN only. 12,679,973 parameters at base 64 with 101 classes.
    """

    def __init__(self, config: ModelConfig, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.trunk = Discriminator(config).trunk
        self.dropout = nn.Dropout3d(dropout)
        self.head = nn.Conv3d((16 if config.wide else 8) * config.base_width, num_classes, config.code_shape)

    def forward(self, video: Tensor) -> Tensor:
        """Compute the logits (B, K) of clips (B, 3, T, H, W) in [-1, 1]."""
        return self.head(self.dropout(self.trunk(video))).flatten(1)

    def prepare_for_finetuning(self) -> None:
        """Replace spectral normalization of the trunk by batch normalization, after its weights are loaded.

        Spectral normalization constrains the weights, and such a trunk has no batch norm, both for adversarial
        training. For fine-tuning the weights become ordinary parameters, and a new batch norm follows every convolution
        except the first, as in the paper's trunk. On four classes of UCF101 (78 training clips, 50 steps, mean of 2
        seeds) a trunk trained with preset=stable reaches 67, 85 and 92 % at 1/8, 1/2 and all of the labels; without the
        batch norms 60, 72 and 82 %. A trunk without spectral normalization is not changed.
        """
        if not remove_spectral_norm(self):
            return
        blocks: list[Any] = list(self.trunk)
        for block in blocks[1:]:
            block.insert(1, nn.BatchNorm3d(block[0].out_channels, eps=DISCRIMINATOR_BN_EPS))
