"""Layers at full resolution: equal sums over blocks and positions, and the effect of half precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks import lively
from torch import Tensor
from torch.nn import functional as F

from vgan.models.config import ModelConfig
from vgan.models.factory import make_networks
from vgan.models.layers import HalvingConv3d, strided_conv_by_blocks, transposed_conv_by_blocks

Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


def halve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv3d(x, weight, bias, stride=2, padding=1)


def double(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv_transpose3d(x, weight, bias, stride=2, padding=1)


@pytest.mark.parametrize(
    ("plain", "blocks", "channels", "kernel"),
    [
        (halve, strided_conv_by_blocks, 3, (5, 3)),
        (double, transposed_conv_by_blocks, 6, (6, 4)),
    ],
)
def test_convolution_by_blocks_is_the_convolution_and_learns_alike(
    plain: Layer, blocks: Layer, channels: int, kernel: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, channels, 4, 6, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(*kernel, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5 if plain is halve else 4, dtype=torch.float64, requires_grad=True)
    result = []
    for layer in (plain, blocks):
        out = layer(x, weight, bias)
        slopes = torch.autograd.grad(out.square().sum(), (x, weight, bias), create_graph=True)
        curvature = torch.autograd.grad(slopes[0].square().sum(), weight)  # as R1 needs
        result.append([out, *slopes, *curvature])
    for one, other in zip(*result, strict=True):
        torch.testing.assert_close(one, other)


def test_halving_layer_is_a_plain_convolution_but_under_autocast() -> None:
    torch.manual_seed(0)
    layer, x = HalvingConv3d(3, 8), torch.randn(2, 3, 4, 6, 8)
    expected = halve(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("kind", ["two_stream", "one_stream", "future", "autoencoder"])
@torch.no_grad()
def test_networks_draw_the_same_clips_under_autocast_as_without_up_to_its_rounding(kind: str) -> None:
    config = ModelConfig(architecture=kind, base_width=4, z_size=5, num_frames=16, size=32)
    clips = torch.rand(4, 3, 16, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    given = {"future": clips[:, :, 0], "autoencoder": clips}.get(kind, torch.randn(4, 5))
    torch.manual_seed(0)
    for name, network in make_networks(config).items():
        lively(network)
        x = clips if name == "discriminator" else given
        expected = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x)
        pairs = [(expected, half)] if name == "discriminator" else zip(expected, half, strict=True)
        for one, other in pairs:
            if one is not None:
                error = (one - other.float()).abs().mean() / one.abs().mean()
                assert error < 0.05, (name, float(error))
