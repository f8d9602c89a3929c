"""Building blocks of the layer tables: convolution + normalization + activation, and the initialization."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

WIDTHS = (8, 4, 2, 1)  # channels of the four hidden layers over the base width, from the code outwards
DISCRIMINATOR_BN_EPS = 1e-3  # the published code's, for encoders too; generators keep 1e-5

CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


# ---- the two layers at full size ---------------------------------------------------------------------------------
#
# Convolutions of 3 or 4 channels leave most of a processor's vector and matrix units idle. The same sums can be taken
# over blocks of 2 x 2 x 2 positions as channels, with the same weights in another order. In bf16, forward and backward,
# base 64, 16 and 8: the first layer of D takes 0.71, 0.77 and 0.46 of the time, the last of G 0.67, 0.61 and 0.52. In
# fp32 at small widths moving the blocks costs more than it saves, so this is done under autocast only.


class HalvingConv3d(nn.Conv3d):
    """A convolution of kernel 4, stride 2 and padding 1, for few channels in."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__(cin, cout, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, cin, T, H, W) to (B, cout, T/2, H/2, W/2)."""
        if under_autocast(x):
            return strided_conv_by_blocks(x, self.weight, self.bias)
        return super().forward(x)


def strided_conv_by_blocks(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.conv3d(x, weight, bias, stride=2, padding=1) for a kernel of 4."""
    x = F.pad(x.to(torch.get_autocast_dtype(x.device.type)) if under_autocast(x) else x, (1,) * 6)
    batch, channels, *padded = x.shape
    time, height, width = (side // 2 for side in padded)
    blocks = x.view(batch, channels, time, 2, height, 2, width, 2).permute(0, 1, 3, 5, 7, 2, 4, 6)
    blocks = blocks.reshape(batch, channels * 8, time, height, width)
    return F.conv3d(to_channels_last(blocks), _block_weight(weight), bias)


def transposed_conv_by_blocks(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.conv_transpose3d(x, weight, bias, stride=2, padding=1) for a kernel of 4."""
    kernel = _block_weight(weight).transpose(0, 1).flip(2, 3, 4)
    blocks = F.conv3d(x, kernel, bias.repeat_interleave(8), padding=1)
    batch, channels, time, height, width = blocks.shape
    blocks = blocks.view(batch, channels // 8, 2, 2, 2, time, height, width).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return F.pad(blocks.reshape(batch, channels // 8, 2 * time, 2 * height, 2 * width), (-1,) * 6)


def _block_weight(weight: Tensor) -> Tensor:
    """(M, N, 4, 4, 4) as (M, 8 N, 2, 2, 2): places inside a block are channels."""
    m, n = weight.shape[:2]
    return weight.view(m, n, 2, 2, 2, 2, 2, 2).permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(m, n * 8, 2, 2, 2)


def under_autocast(x: Tensor) -> bool:
    """Whether a layer that sees `x` works in half precision."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def to_channels_last(x: Tensor) -> Tensor:
    """Maps (B, C, T, H, W), under autocast with the channels last in memory, which all layers after them then keep."""
    return x.contiguous(memory_format=torch.channels_last_3d) if under_autocast(x) else x


def use_channels_last(network: nn.Module) -> None:
    """Give weights of volumes the layout of the maps (`working_layout`), in place, for training under autocast.

    A step of the paper's networks then takes 0.89 of the time at base 64, and the same at base 16. Weights that are
    divided by their spectral norm gain nothing, and stay.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d) and not is_parametrized(layer):
            layer.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


# ---- chains of layers --------------------------------------------------------------------------------------------


def upsample_layer(dims: int, cin: int, cout: int, upsample: str) -> nn.Module:
    """A layer that doubles every side of (B, cin, ...) with `dims` sides.

    Args:
        upsample: transpose, the paper's transposed convolution of kernel 4; or resize, nearest neighbours and then
            a convolution of kernel 3, which cannot draw checkerboards (https://distill.pub/2016/deconv-checkerboard/).
    """
    if upsample == "transpose":
        return TRANSPOSED[dims](cin, cout, 4, 2, 1)
    return {2: ResizeConv2d, 3: ResizeConv3d}[dims](cin, cout)


class ResizeConv2d(nn.Conv2d):
    """Every position twice along every side, then a convolution of kernel 3: see `doubling_kernel`."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__(cin, cout, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, cin, H, W) to (B, cout, 2 H, 2 W)."""
        return F.conv_transpose2d(x, doubling_kernel(self), self.bias, 2, 1)


class ResizeConv3d(nn.Conv3d):
    """Every position twice along every side, then a convolution of kernel 3: see `doubling_kernel`."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__(cin, cout, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, cin, T, H, W) to (B, cout, 2 T, 2 H, 2 W)."""
        return F.conv_transpose3d(x, doubling_kernel(self), self.bias, 2, 1)


def doubling_kernel(layer: nn.Module) -> Tensor:
    """The kernel (cin, cout, 4, ...) of the transposed convolution of stride 2 that a layer of `double` amounts to.

    A kernel (a, b, c) over positions that stand twice is (c, b + c, a + b, a), transposed, over positions that stand
    once: the same sums by 64 products in place of 216.
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if not isinstance(layer, ResizeConv2d | ResizeConv3d):
        return weight
    weight = weight.transpose(0, 1).flip(tuple(range(2, weight.ndim)))
    for axis in range(2, weight.ndim):
        pads = [0] * (2 * weight.ndim)
        after = 2 * (weight.ndim - 1 - axis) + 1  # F.pad counts from the last side
        shifted = [F.pad(weight, [*pads[:i], 1, *pads[i + 1 :]]) for i in (after - 1, after)]
        weight = shifted[0] + shifted[1]
    return weight


def stem(dims: int, cin: int, cout: int, kernel: int | Sequence[int]) -> nn.Sequential:
    """One position (B, cin, 1, ...) to a map of the kernel's sides: transposed convolution, batch norm, ReLU."""
    layer = TRANSPOSED[dims](cin, cout, kernel)  # type: ignore[arg-type]
    return nn.Sequential(layer, BATCH_NORM[dims](cout), nn.ReLU(inplace=True))


def decoder_stack(dims: int, widths: Sequence[int], upsample: str) -> nn.Sequential:
    """A chain of layers through `widths`, each doubling every side, with batch norm and ReLU."""
    layers = []
    for cin, cout in pairwise(widths):
        layers.append(
            nn.Sequential(upsample_layer(dims, cin, cout, upsample), BATCH_NORM[dims](cout), nn.ReLU(inplace=True))
        )
    return nn.Sequential(*layers)


def encoder_stack(dims: int, widths: Sequence[int], *, slope: float, norm: bool = True) -> nn.Sequential:
    """A chain of convolutions of kernel 4 through `widths`, each halving every side, with leaky ReLU.

    Args:
        slope: of the leaky ReLU below zero; 0 is a plain ReLU.
        norm: whether batch norm follows every convolution but the first.
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
    """Divide every convolution's weights by their largest singular value (https://arxiv.org/abs/1802.05957)."""
    for layer in list(network.modules()):
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            spectral_norm(layer)


def remove_spectral_norm(network: nn.Module) -> bool:
    """Undo `normalize_spectrum`, if it was done: weights stay as they were divided, and are free from now on."""
    held = [layer for layer in network.modules() if is_parametrized(layer, "weight")]
    for layer in held:
        remove_parametrizations(layer, "weight", leave_parametrized=True)
    return bool(held)


def initialize(module: nn.Module) -> None:
    """Weights N(0, 0.01), biases 0 (paper section 2.4); batch-norm scale N(1, 0.02), shift 0 (published code).

    Use as `network.apply(initialize)`.
    """
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.normal_(module.weight, 0.0, 0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
