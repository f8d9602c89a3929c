"""Settings of the networks."""

from __future__ import annotations

from dataclasses import dataclass

from vgan.options import check_choice, option

NETWORKS_WITH_UNITS = ("discriminator", "encoder")  # networks whose hidden units can be inspected
ARCHITECTURES = ("two_stream", "one_stream", "future", "autoencoder")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Network architectures: the layer tables of the paper at any width (paper section 2)."""

    architecture: str = option(
        "two_stream",
        "network: two_stream (paper equation 2) or one_stream, which generate clips from noise; future, from an image "
        "(section 3.4); or autoencoder, the baseline (section 3.2)",
    )
    base_width: int = option(64, "channels of the hidden layer with the highest resolution; 64 in the paper")
    z_size: int = option(100, "length of the latent code z (Z)")
    num_frames: int = option(32, "frames per clip (T); must equal that of the dataset")
    size: int = option(64, "height and width of a clip, pixels; must equal that of the dataset")
    future_encoder: str = option(
        "paper",
        "image encoder of the future model: paper (five layers to z) or reference (four to a map, twice the width)",
    )
    upsample: str = option(
        "transpose",
        "upsampling layers: transpose (transposed convolutions, as in the paper) or resize (resize, then convolve)",
    )
    discriminator_norm: str = option(
        "batch",
        "normalization in D: batch (batch norm, as in the paper) or spectral (spectral norm of weights, no batch norm)",
    )

    def __post_init__(self) -> None:
        check_choice("model.architecture", self.architecture, ARCHITECTURES)
        check_choice("model.future_encoder", self.future_encoder, ("paper", "reference"))
        check_choice("model.upsample", self.upsample, ("transpose", "resize"))
        check_choice("model.discriminator_norm", self.discriminator_norm, ("batch", "spectral"))
        if self.base_width < 1 or self.z_size < 1:
            raise ValueError(
                f"model.base_width and model.z_size must be at least 1, got {self.base_width} and {self.z_size}"
            )
        if self.num_frames < 16 or self.num_frames % 16:
            raise ValueError(f"model.num_frames must be a multiple of 16, got {self.num_frames}")
        if self.size not in (32, 64, 128):
            raise ValueError(f"model.size must be 32, 64 or 128, got {self.size}")

    @property
    def code_shape(self) -> tuple[int, int, int]:
        """Shape (T, H, W) of the smallest feature map, 1/16 of the clip in each dimension: (2, 4, 4) in the paper."""
        return self.num_frames // 16, self.size // 16, self.size // 16

    @property
    def wide(self) -> bool:
        """True if G and D have the doubled widths of the published future model."""
        return self.architecture == "future" and self.future_encoder == "reference"
