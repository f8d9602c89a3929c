"""The discriminator's trunk with a K-way softmax head (paper section 3.3)."""

from __future__ import annotations

from torch import Tensor, nn

from vgan.config import ModelConfig
from vgan.models.discriminator import Discriminator


class Classifier(nn.Module):
    """Clips to class logits: trunk, dropout of whole channels, one convolution over what is left.

    The head keeps PyTorch's default initialization, as the original's new layer kept Torch's: N(0, 0.01) is for
    the networks of the GAN. 12,679,973 parameters at base 64 with 101 classes.
    """

    def __init__(self, config: ModelConfig, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.trunk = Discriminator(config).trunk
        self.dropout = nn.Dropout3d(dropout)
        self.head = nn.Conv3d((16 if config.wide else 8) * config.base, num_classes, config.code_shape)

    def forward(self, video: Tensor) -> Tensor:
        """Logits (B, K) of clips (B, 3, T, H, W) in [-1, 1]."""
        return self.head(self.dropout(self.trunk(video))).flatten(1)
