"""Building blocks of the layer tables: convolution + normalization + activation, and the initialization."""

from __future__ import annotations

from torch import nn

WIDTHS = (8, 4, 2, 1)  # channels of the four hidden layers over the base width, from the code outwards
DISCRIMINATOR_BN_EPS = 1e-3  # the published code's; the generator keeps 1e-5


def up3d(cin: int, cout: int) -> nn.Sequential:
    """Double T, H and W: transposed convolution 4x4x4, batch norm, ReLU."""
    return nn.Sequential(nn.ConvTranspose3d(cin, cout, 4, 2, 1), nn.BatchNorm3d(cout), nn.ReLU(inplace=True))


def up2d(cin: int, cout: int) -> nn.Sequential:
    """Double H and W: transposed convolution 4x4, batch norm, ReLU."""
    return nn.Sequential(nn.ConvTranspose2d(cin, cout, 4, 2, 1), nn.BatchNorm2d(cout), nn.ReLU(inplace=True))


def down3d(cin: int, cout: int, *, norm: bool) -> nn.Sequential:
    """Halve T, H and W: convolution 4x4x4, batch norm (not in the first layer), leaky ReLU 0.2."""
    layers: list[nn.Module] = [nn.Conv3d(cin, cout, 4, 2, 1)]
    if norm:
        layers.append(nn.BatchNorm3d(cout, eps=DISCRIMINATOR_BN_EPS))
    return nn.Sequential(*layers, nn.LeakyReLU(0.2, inplace=True))


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
