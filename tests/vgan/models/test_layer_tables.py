"""Every network at the paper's size, compared with the layer tables of paper and published code.

Each layer of a forward pass is compared, on torch's meta device, where nothing is computed: the operation (FC is a
fractionally-strided convolution), input and output channels, kernel, stride, padding, the layers after it (batch norm
with its eps, activation with its slope), and the sides of the output. A row notes a missing bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from networks import GENERATORS, count
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vgan.models.classifier import Classifier
from vgan.models.config import ModelConfig
from vgan.models.discriminator import Discriminator
from vgan.models.factory import make_generator
from vgan.models.layers import ResizeConv2d, ResizeConv3d

FOREGROUND = """
    FC3d    100->512   2x4x4  1 0  BN(1e-05) ReLU        2x4x4
    FC3d    512->256   4x4x4  2 1  BN(1e-05) ReLU        4x8x8
    FC3d    256->128   4x4x4  2 1  BN(1e-05) ReLU        8x16x16
    FC3d    128->64    4x4x4  2 1  BN(1e-05) ReLU        16x32x32"""
RGB = """
    FC3d    64->3      4x4x4  2 1  Tanh                  32x64x64"""
MASK = """
    FC3d    64->1      4x4x4  2 1  Sigmoid               32x64x64"""
BACKGROUND = """
    FC2d    100->512   4x4    1 0  BN(1e-05) ReLU        4x4
    FC2d    512->256   4x4    2 1  BN(1e-05) ReLU        8x8
    FC2d    256->128   4x4    2 1  BN(1e-05) ReLU        16x16
    FC2d    128->64    4x4    2 1  BN(1e-05) ReLU        32x32
    FC2d    64->3      4x4    2 1  Tanh                  64x64"""
TRUNK = """
    Conv3d  3->64      4x4x4  2 1  LeakyReLU(0.2)            16x32x32
    Conv3d  64->128    4x4x4  2 1  BN(0.001) LeakyReLU(0.2)  8x16x16
    Conv3d  128->256   4x4x4  2 1  BN(0.001) LeakyReLU(0.2)  4x8x8
    Conv3d  256->512   4x4x4  2 1  BN(0.001) LeakyReLU(0.2)  2x4x4"""
TWO_LOGITS = """
    Conv3d  512->2     2x4x4  1 0                            1x1x1"""
CLASSES = """
    Conv3d  512->101   2x4x4  1 0                            1x1x1"""
CODE = """
    Conv3d  512->100   2x4x4  1 0                            1x1x1"""
IMAGE_TO_CODE = """
    Conv2d  3->64      4x4    2 1  ReLU                  32x32
    Conv2d  64->128    4x4    2 1  BN(0.001) ReLU        16x16
    Conv2d  128->256   4x4    2 1  BN(0.001) ReLU        8x8
    Conv2d  256->512   4x4    2 1  BN(0.001) ReLU        4x4
    Conv2d  512->100   4x4    1 0                        1x1"""
WIDE_FUTURE = """
    Conv2d  3->128     4x4    2 1  ReLU                  32x32
    Conv2d  128->256   4x4    2 1  BN(0.001) ReLU        16x16
    Conv2d  256->512   4x4    2 1  BN(0.001) ReLU        8x8
    Conv2d  512->1024  4x4    2 1  BN(0.001) ReLU        4x4
    FC3d    1024->1024 2x1x1  1 0  BN(1e-05) ReLU        2x4x4
    FC3d    1024->512  4x4x4  2 1  BN(1e-05) ReLU        4x8x8
    FC3d    512->256   4x4x4  2 1  BN(1e-05) ReLU        8x16x16
    FC3d    256->128   4x4x4  2 1  BN(1e-05) ReLU        16x32x32
    FC3d    128->3     4x4x4  2 1  Tanh                  32x64x64
    FC3d    128->1     4x4x4  2 1  Sigmoid               32x64x64
    FC2d    1024->512  4x4    2 1  BN(1e-05) ReLU        8x8
    FC2d    512->256   4x4    2 1  BN(1e-05) ReLU        16x16
    FC2d    256->128   4x4    2 1  BN(1e-05) ReLU        32x32
    FC2d    128->3     4x4    2 1  Tanh                  64x64"""
WIDE_DISCRIMINATOR = """
    Conv3d  3->128     4x4x4  2 1  LeakyReLU(0.2)            16x32x32
    Conv3d  128->256   4x4x4  2 1  BN(0.001) LeakyReLU(0.2)  8x16x16
    Conv3d  256->512   4x4x4  2 1  BN(0.001) LeakyReLU(0.2)  4x8x8
    Conv3d  512->1024  4x4x4  2 1  BN(0.001) LeakyReLU(0.2)  2x4x4
    Conv3d  1024->2    2x4x4  1 0                            1x1x1"""

NOISE, IMAGES, CLIPS = (2, 100), (2, 3, 64, 64), (2, 3, 32, 64, 64)
TABLES: dict[str, tuple[tuple[int, ...], str]] = {
    "two_stream": (NOISE, FOREGROUND + RGB + MASK + BACKGROUND),
    "one_stream": (NOISE, FOREGROUND + RGB),
    "future": (IMAGES, IMAGE_TO_CODE + FOREGROUND + RGB + MASK + BACKGROUND),
    "wide_future": (IMAGES, WIDE_FUTURE),
    "autoencoder": (CLIPS, TRUNK + CODE + FOREGROUND + RGB + MASK + BACKGROUND),
    "discriminator": (CLIPS, TRUNK + TWO_LOGITS),
    "discriminator of wide_future": (CLIPS, WIDE_DISCRIMINATOR),
    "classifier": (CLIPS, TRUNK + CLASSES),
}

# Network, part of it ("" is all), parameters: weights, biases, and batch norm's scale and shift.
PARAMETERS = [
    ("two_stream", "", 16_245_383),
    ("two_stream", "stem trunk", 12_651_328),
    ("two_stream", "heads.rgb", 12_291),
    ("two_stream", "heads.mask", 4_097),
    ("two_stream", "background", 3_577_667),
    ("one_stream", "", 12_663_619),
    ("future", "", 19_823_019),  # not published: the sum of the next and the two-stream generator
    ("future", "encoder", 3_577_636),  # 3,136 + 131,456 + 525,056 + 2,098,688 + 819,300, its five layers
    ("wide_future", "", 68_216_455),
    ("wide_future", "encoder", 11_021_696),
    ("autoencoder", "encoder", 12_663_588),
    ("autoencoder", "decoder", 16_245_383),
    ("discriminator", "", 11_057_858),
    ("discriminator", "trunk", 11_025_088),
    ("discriminator of wide_future", "", 44_135_810),
    ("classifier", "", 12_679_973),
]

CONVOLUTIONS = {"conv2d": "Conv2d", "conv3d": "Conv3d", "conv_transpose2d": "FC2d", "conv_transpose3d": "FC3d"}


def make(name: str, **more: Any) -> nn.Module:
    """Create a network at the paper's size on the meta device, without memory for its weights."""
    with torch.device("meta"):
        if name in GENERATORS:
            return make_generator(ModelConfig(**GENERATORS[name], **more))
        if name == "classifier":
            return Classifier(ModelConfig(**more), 101, 0.5)
        kind = GENERATORS[name.removeprefix("discriminator of ")] if " of " in name else {}
        return Discriminator(ModelConfig(**kind, **more))


class Recorder(TorchFunctionMode):
    """Recorder of convolutions and of the layers after each of them, in the notation of the tables."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out, name, kwargs = function(*args, **(kwargs or {})), getattr(function, "__name__", ""), kwargs or {}
        if name in CONVOLUTIONS:
            x, weight, bias, stride, padding = args[:5]
            row = [CONVOLUTIONS[name], f"{x.shape[1]}->{out.shape[1]}", sides(weight), one(stride), one(padding)]
            self.rows.append([*row, *(["no bias"] if bias is None else []), sides(out)])
        elif name == "batch_norm":
            self.rows[-1].insert(-1, f"BN({kwargs['eps']:g})")
        elif name == "relu" or (name == "leaky_relu" and kwargs["negative_slope"] == 0):
            self.rows[-1].insert(-1, "ReLU")
        elif name == "leaky_relu":
            self.rows[-1].insert(-1, f"LeakyReLU({kwargs['negative_slope']:g})")
        elif name in ("tanh", "sigmoid"):
            self.output_layer(name.title(), channels=out.shape[1])
        return out

    def output_layer(self, activation: str, channels: int) -> None:
        """Record two output layers that are computed as one convolution as two rows, by their activations."""
        if self.rows[-1][-2] == "Tanh":
            self.rows.append([cell for cell in self.rows[-1] if cell != "Tanh"])
        row = self.rows[-1]
        row[1] = f"{row[1].split('->')[0]}->{channels}"
        row.insert(-1, activation)


def sides(tensor: Tensor) -> str:
    """Format a shape (., ., T, H, W) as TxHxW."""
    return "x".join(str(side) for side in tensor.shape[2:])


def one(value: int | Sequence[int]) -> str:
    """Format a stride or padding that is equal along every side as one number."""
    values = {value} if isinstance(value, int) else set(value)
    return str(values.pop()) if len(values) == 1 else str(value)


def rows(network: nn.Module, shape: tuple[int, ...]) -> list[str]:
    """Return the computation of a network for an input of that shape, one row per convolution."""
    with Recorder() as recorder:
        network(torch.empty(shape, device="meta"))
    return [" ".join(row) for row in recorder.rows]


def written(table: str) -> list[str]:
    return [" ".join(line.split()) for line in table.split("\n") if line.strip()]


@pytest.mark.parametrize("name", TABLES)
def test_network_is_its_layer_table(name: str) -> None:
    shape, table = TABLES[name]
    assert rows(make(name), shape) == written(table)


@pytest.mark.parametrize(("name", "part", "parameters"), PARAMETERS)
def test_network_has_the_published_parameters(name: str, part: str, parameters: int) -> None:
    network = make(name)
    assert sum(count(network.get_submodule(each)) for each in part.split() or [""]) == parameters


@pytest.mark.parametrize("name", ["discriminator", "discriminator of wide_future"])
def test_discriminator_with_spectral_norm_is_its_table_without_batch_norm(name: str) -> None:
    shape, table = TABLES[name]
    assert rows(make(name, discriminator_norm="spectral"), shape) == written(table.replace("BN(0.001)", ""))


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_that_resizes_computes_its_table_from_kernels_of_3(name: str) -> None:
    """Check the layers; test_generator.py tests that each is nearest-neighbor upsampling and a convolution."""
    shape, table = TABLES[name]
    network = make(name, upsample="resize")
    assert rows(network, shape) == written(table)
    doubling = [layer for layer in network.modules() if isinstance(layer, ResizeConv2d | ResizeConv3d)]
    assert len(doubling) == sum(line.split()[0].startswith("FC") and line.split()[3] == "2" for line in written(table))
    assert {side for layer in doubling for side in layer.weight.shape[2:]} == {3}
