"""Building blocks of the layer tables: convolution + normalization + activation, and the initialization."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

WIDTHS = (8, 4, 2, 1)  # channels of the four hidden layers over the base width, from the code outwards
DISCRIMINATOR_BN_EPS = 1e-3  # the published code's, for encoders too; generators keep 1e-5

CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def double(dims: int, cin: int, cout: int, upsample: str) -> nn.Module:
    """A layer that doubles every side of (B, cin, ...) with `dims` sides.

    Args:
        upsample: transpose, the paper's transposed convolution of kernel 4; or resize, nearest neighbours and then
            a convolution of kernel 3, which cannot draw checkerboards (https://distill.pub/2016/deconv-checkerboard/).
    """
    if upsample == "transpose":
        return TRANSPOSED[dims](cin, cout, 4, 2, 1)
    return nn.Sequential(nn.Upsample(scale_factor=2), CONVOLUTION[dims](cin, cout, 3, 1, 1))


def stem(dims: int, cin: int, cout: int, kernel: int | Sequence[int]) -> nn.Sequential:
    """One position (B, cin, 1, ...) to a map of the kernel's sides: transposed convolution, batch norm, ReLU."""
    layer = TRANSPOSED[dims](cin, cout, kernel)  # type: ignore[arg-type]
    return nn.Sequential(layer, BATCH_NORM[dims](cout), nn.ReLU(inplace=True))


def up(dims: int, widths: Sequence[int], upsample: str) -> nn.Sequential:
    """A chain of layers through `widths`, each doubling every side, with batch norm and ReLU."""
    layers = []
    for cin, cout in pairwise(widths):
        layers.append(nn.Sequential(double(dims, cin, cout, upsample), BATCH_NORM[dims](cout), nn.ReLU(inplace=True)))
    return nn.Sequential(*layers)


def down(dims: int, widths: Sequence[int], *, slope: float, norm: bool = True) -> nn.Sequential:
    """A chain of convolutions of kernel 4 through `widths`, each halving every side, with leaky ReLU.

    Args:
        slope: of the leaky ReLU below zero; 0 is a plain ReLU.
        norm: whether batch norm follows every convolution but the first.
    """
    layers = []
    for number, (cin, cout) in enumerate(pairwise(widths)):
        block: list[nn.Module] = [CONVOLUTION[dims](cin, cout, 4, 2, 1)]
        if norm and number:
            block.append(BATCH_NORM[dims](cout, eps=DISCRIMINATOR_BN_EPS))
        layers.append(nn.Sequential(*block, nn.LeakyReLU(slope, inplace=True)))
    return nn.Sequential(*layers)


def normalize_spectrum(network: nn.Module) -> None:
    """Divide every convolution's weights by their largest singular value (https://arxiv.org/abs/1802.05957)."""
    for layer in list(network.modules()):
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            spectral_norm(layer)


def fix_spectrum(network: nn.Module) -> None:
    """Undo `normalize_spectrum`: what the weights were divided by stays so, and they are free from now on."""
    for layer in network.modules():
        if is_parametrized(layer, "weight"):
            remove_parametrizations(layer, "weight", leave_parametrized=True)


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
