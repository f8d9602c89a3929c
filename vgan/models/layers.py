"""Building blocks of the networks: convolution, normalization, activation and initialization (paper section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

WIDTHS = (8, 4, 2, 1)  # channels of the four hidden layers over the base width, from the code to the video
DISCRIMINATOR_BN_EPS = 1e-3  # published code, for encoders as well; generators have 1e-5

CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


# ---- the two layers at full resolution ---------------------------------------------------------------------------
#
# Convolutions of 3 or 4 channels leave most of a processor's vector and matrix units idle. With blocks of 2 x 2 x 2
# positions as channels, and the weights reordered, the sums are the same. In bf16, forward and backward, base 64, 16
# and 8: the first layer of D takes 0.71, 0.77 and 0.46 of the time, the last of G 0.67, 0.61 and 0.52. In
# fp32 at small widths reordering the blocks costs more than it saves, so it is done under autocast only.


class HalvingConv3d(nn.Conv3d):
    """Convolution of kernel 4, stride 2 and padding 1, optimized for few input channels."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__(cin, cout, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, cin, T, H, W) to (B, cout, T/2, H/2, W/2)."""
        if under_autocast(x):
            return strided_conv_by_blocks(x, self.weight, self.bias)
        return super().forward(x)


def strided_conv_by_blocks(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute F.conv3d(x, weight, bias, stride=2, padding=1) for kernel 4, with 2 x 2 x 2 blocks."""
    x = F.pad(x.to(torch.get_autocast_dtype(x.device.type)) if under_autocast(x) else x, (1,) * 6)
    batch, channels, *padded = x.shape
    time, height, width = (side // 2 for side in padded)
    blocks = x.view(batch, channels, time, 2, height, 2, width, 2).permute(0, 1, 3, 5, 7, 2, 4, 6)
    blocks = blocks.reshape(batch, channels * 8, time, height, width)
    return F.conv3d(to_channels_last(blocks), _block_weight(weight), bias)


def transposed_conv_by_blocks(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute F.conv_transpose3d(x, weight, bias, stride=2, padding=1) for kernel 4, with 2 x 2 x 2 blocks."""
    kernel = _block_weight(weight).transpose(0, 1).flip(2, 3, 4)
    blocks = F.conv3d(x, kernel, bias.repeat_interleave(8), padding=1)
    batch, channels, time, height, width = blocks.shape
    blocks = blocks.view(batch, channels // 8, 2, 2, 2, time, height, width).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return F.pad(blocks.reshape(batch, channels // 8, 2 * time, 2 * height, 2 * width), (-1,) * 6)


def _block_weight(weight: Tensor) -> Tensor:
    """Reorder a weight (M, N, 4, 4, 4) as (M, 8 N, 2, 2, 2), with positions inside a block as channels."""
    m, n = weight.shape[:2]
    return weight.view(m, n, 2, 2, 2, 2, 2, 2).permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(m, n * 8, 2, 2, 2)


def under_autocast(x: Tensor) -> bool:
    """Return True if autocast is enabled on the device of `x`."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def to_channels_last(x: Tensor) -> Tensor:
    """Convert maps (B, C, T, H, W) to channels_last_3d under autocast; all subsequent layers preserve that format."""
    return x.contiguous(memory_format=torch.channels_last_3d) if under_autocast(x) else x


def use_channels_last(network: nn.Module) -> None:
    """Convert the weights of 3D convolutions to the memory format of `to_channels_last`, in place, for autocast.

    A training step of the paper's networks takes 0.89 of the time at base 64, and the same time at base 16. Spectrally
    normalized weights are not changed, because they gain nothing.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d) and not is_parametrized(layer):
            layer.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


# ---- chains of layers --------------------------------------------------------------------------------------------


def upsample_layer(dims: int, cin: int, cout: int, upsample: str) -> nn.Module:
    """Create a layer that doubles every side of its input.

    Args:
        dims: number of sides, 2 (H, W) or 3 (T, H, W).
        cin: input channels.
        cout: output channels.
        upsample: transpose, the paper's transposed convolution of kernel 4 (section 2.2); or resize, nearest-neighbor
            upsampling and a convolution of kernel 3, which cannot produce checkerboard artifacts
            (https://distill.pub/2016/deconv-checkerboard/).
    """
    if upsample == "transpose":
        return TRANSPOSED[dims](cin, cout, 4, 2, 1)
    return {2: ResizeConv2d, 3: ResizeConv3d}[dims](cin, cout)


class ResizeConv2d(nn.Conv2d):
    """Nearest-neighbor upsampling by 2 and a convolution of kernel 3, computed as in `doubling_kernel`."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__(cin, cout, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, cin, H, W) to (B, cout, 2 H, 2 W)."""
        return F.conv_transpose2d(x, doubling_kernel(self), self.bias, 2, 1)


class ResizeConv3d(nn.Conv3d):
    """Nearest-neighbor upsampling by 2 and a convolution of kernel 3, computed as in `doubling_kernel`."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__(cin, cout, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, cin, T, H, W) to (B, cout, 2 T, 2 H, 2 W)."""
        return F.conv_transpose3d(x, doubling_kernel(self), self.bias, 2, 1)


def doubling_kernel(layer: nn.Module) -> Tensor:
    """Return the kernel (cin, cout, 4, ...) of the transposed convolution (stride 2) equal to an `upsample_layer`.

    A kernel (a, b, c) on positions that are repeated twice equals the transposed kernel (c, b + c, a + b, a) on the
    original positions: the same sums with 64 products in place of 216.
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if not isinstance(layer, ResizeConv2d | ResizeConv3d):
        return weight
    weight = weight.transpose(0, 1).flip(tuple(range(2, weight.ndim)))
    for axis in range(2, weight.ndim):
        pads = [0] * (2 * weight.ndim)
        after = 2 * (weight.ndim - 1 - axis) + 1  # F.pad starts at the last side
        shifted = [F.pad(weight, [*pads[:i], 1, *pads[i + 1 :]]) for i in (after - 1, after)]
        weight = shifted[0] + shifted[1]
    return weight


def stem(dims: int, cin: int, cout: int, kernel: int | Sequence[int]) -> nn.Sequential:
    """Create the first block of a generator: transposed convolution of one position (B, cin, 1, ...), batch norm, ReLU.

    The sides of its output are those of the kernel.
    """
    layer = TRANSPOSED[dims](cin, cout, kernel)  # type: ignore[arg-type]
    return nn.Sequential(layer, BATCH_NORM[dims](cout), nn.ReLU(inplace=True))


def decoder_stack(dims: int, widths: Sequence[int], upsample: str) -> nn.Sequential:
    """Create a chain of layers with channels `widths` that each double every side, with batch norm and ReLU."""
    layers = []
    for cin, cout in pairwise(widths):
        layers.append(
            nn.Sequential(upsample_layer(dims, cin, cout, upsample), BATCH_NORM[dims](cout), nn.ReLU(inplace=True))
        )
    return nn.Sequential(*layers)


def encoder_stack(dims: int, widths: Sequence[int], *, slope: float, norm: bool = True) -> nn.Sequential:
    """Create a chain of convolutions of kernel 4 that each halve every side, with leaky ReLU (paper section 2.3).

    Args:
        dims: number of sides, 2 (H, W) or 3 (T, H, W).
        widths: channels of the input and of every layer.
        slope: negative slope of the leaky ReLU; 0 for plain ReLU.
        norm: add batch norm after every convolution except the first.
    """
    layers = []
    for number, (cin, cout) in enumerate(pairwise(widths)):
        first = dims == 3 and number == 0
        block: list[nn.Module] = [HalvingConv3d(cin, cout) if first else CONVOLUTION[dims](cin, cout, 4, 2, 1)]
        if norm and number:
            block.append(BATCH_NORM[dims](cout, eps=DISCRIMINATOR_BN_EPS))
        layers.append(nn.Sequential(*block, nn.LeakyReLU(slope, inplace=True)))
    return nn.Sequential(*layers)


def apply_spectral_norm(network: nn.Module) -> None:
    """Apply spectral normalization to every convolution, in place (https://arxiv.org/abs/1802.05957)."""
    for layer in list(network.modules()):
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            spectral_norm(layer)


def remove_spectral_norm(network: nn.Module) -> bool:
    """Remove spectral normalization, in place: the normalized weights become ordinary parameters.

    Returns:
        True if any layer was spectrally normalized.
    """
    normalized = [layer for layer in network.modules() if is_parametrized(layer, "weight")]
    for layer in normalized:
        remove_parametrizations(layer, "weight", leave_parametrized=True)
    return bool(normalized)


def initialize(module: nn.Module) -> None:
    """Initialize a layer in place; call as `network.apply(initialize)`.

    Weights N(0, 0.01) (paper section 2.4) and biases 0; batch norm scale N(1, 0.02) and shift 0 (published code).
    """
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.normal_(module.weight, 0.0, 0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
