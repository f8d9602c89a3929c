"""Scene classifiers with published weights, loaded without executing pickled code.

Supported are the ResNet checkpoints of Places365 (https://github.com/CSAILVision/places365; ResNet-18 and ResNet-50 are
published), PyTorch state dicts with torchvision's names, with or without the prefix `module.`; and the SqueezeNet of
https://github.com/urbste/squeezenet_places365, a pickle of 152 NumPy arrays. All have 365 outputs. Inputs are RGB in
0..255; each network here includes its normalization (mean, scale, order of color channels).
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgan.errors import InputError
from vgan.safe_pickle import read_arrays

NUM_LABELS = 365
MAX_BLOCKS = 36  # per layer: the largest count in ResNet-152
READER_FAULTS = (  # raised by torch and pickle for truncated files and other formats
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError),
    *(OverflowError, MemoryError, AssertionError),
)
KINDS = "a Places365 ResNet checkpoint (.pth.tar) or the SqueezeNet's .params"


class ImageNormalization(nn.Module):
    """Per-channel normalization (x - mean) / std of pictures (B, 3, H, W) in 0..255."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Normalize pictures (B, 3, H, W)."""
        return (pictures - self.mean) / self.std


class Fire(nn.Module):
    """Fire module: 1x1 squeeze convolution, then parallel 1x1 and 3x3 expansions (https://arxiv.org/abs/1602.07360)."""

    def __init__(self, cin: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(cin, squeezed, 1)
        self.expand1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, cin, H, W) to (B, 2 * expanded, H, W)."""
        x = leaky_relu(self.squeeze(x))
        return leaky_relu(torch.cat([self.expand1(x), self.expand3(x)], 1))


def leaky_relu(x: Tensor) -> Tensor:
    """Apply a leaky ReLU of slope 0.55 in place, the activation that the SqueezeNet was trained with."""
    return F.leaky_relu(x, 0.55, inplace=True)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 with batch norms folded into the convolutions; 0.92 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        # Mean color of Places365. The authors subtract a mean picture, which differs little from it.
        self.seen = ImageNormalization((116.676, 112.514, 104.051), (255.0, 255.0, 255.0))
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(3, 64, 3, stride=2),
                *(Fire(64, 16, 64), Fire(128, 16, 64)),
                *(Fire(128, 32, 128), Fire(256, 32, 128)),
                *(Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)),
                nn.Conv2d(512, NUM_LABELS, 1),
            ]
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """Compute logits (B, 365) of pictures (B, 3, 224, 224) in 0..255."""
        x = leaky_relu(self.layers[0](self.seen(pictures)))  # (B, 64, 111, 111)
        for number, layer in enumerate(self.layers[1:], start=1):
            if number in (1, 3, 5):
                x = F.max_pool2d(x, 3, 2)  # 55, 27, 13
            x = layer(x)
        return leaky_relu(x).mean((2, 3))


class ResidualBlock(nn.Module):
    """Residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 in networks of at least 50 layers."""

    def __init__(self, cin: int, width: int, stride: int, *, deep: bool) -> None:
        super().__init__()
        cout = width * 4 if deep else width
        layers = [(cin, width, 1, 1), (width, width, 3, stride), (width, cout, 1, 1)]
        if not deep:
            layers = [(cin, width, 3, stride), (width, width, 3, 1)]
        self.depth = len(layers)
        for number, (a, b, kernel, step) in enumerate(layers, start=1):
            self.add_module(f"conv{number}", nn.Conv2d(a, b, kernel, step, padding=kernel // 2, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm2d(b))
        self.downsample = None
        if stride > 1 or cin != cout:
            self.downsample = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, cin, H, W) to (B, cout, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        for number in range(1, self.depth + 1):
            x = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x))
            x = F.relu(x if number < self.depth else x + shortcut, inplace=True)
        return x


class ResNet(nn.Module):
    """Residual network with torchvision's parameter names (https://arxiv.org/abs/1512.03385).

    Args:
        blocks: number of blocks in each of the four layers: (2, 2, 2, 2) in ResNet-18, (3, 4, 6, 3) in ResNet-50.
        deep: use bottleneck blocks of three convolutions.
    """

    def __init__(self, blocks: tuple[int, ...], *, deep: bool) -> None:
        super().__init__()
        self.seen = ImageNormalization(
            (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
        )  # ImageNet's, as in the authors' demo
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64)
        cin = 64
        for number, count in enumerate(blocks):
            width, layer = 64 << number, []
            for n in range(count):
                layer.append(ResidualBlock(cin, width, 2 if number and not n else 1, deep=deep))
                cin = width * 4 if deep else width
            self.add_module(f"layer{number + 1}", nn.Sequential(*layer))
        self.fc = nn.Linear(cin, NUM_LABELS)

    def forward(self, pictures: Tensor) -> Tensor:
        """Compute logits (B, 365) of pictures (B, 3, 224, 224) in 0..255."""
        x = F.relu(self.bn1(self.conv1(self.seen(pictures))), inplace=True)  # (B, 64, 112, 112)
        x = F.max_pool2d(x, 3, 2, padding=1)
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)  # 56, 28, 14, 7
        return self.fc(x.mean((2, 3)))


def load_scene_network(content: bytes, origin: str) -> nn.Module:
    """Load a classifier in eval mode from the bytes of a weights file; pickled code is rejected, never executed.

    Args:
        content: bytes of the file.
        origin: URL of the file, for error messages.

    Raises:
        InputError: the format is not supported, or the tensors do not fit the network.
    """
    try:
        if content[:1] == b"\x80" and b"numpy" in content[:64]:  # a pickle whose first object is an array
            return _squeezenet(read_arrays(content)).eval()
        return _resnet(torch.load(io.BytesIO(content), "cpu", weights_only=True)).eval()
    except InputError as error:
        raise InputError(f"scene.weights={origin!r}: {error}") from error
    except READER_FAULTS as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise InputError(f"scene.weights={origin!r} cannot be read ({reason}): give {KINDS}") from error


def _squeezenet(arrays: Any) -> SqueezeNet:
    """Load the SqueezeNet from its list of arrays.

    The order is Lasagne's: weight and bias of each convolution, then beta, gamma, mean and 1/deviation of its batch
    norm, which the last convolution does not have. Kernels are those of true convolutions (flipped here) and take BGR.

    Raises:
        InputError: the arrays have another number, shape or dtype.
    """
    network = SqueezeNet()
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    expected: list[tuple[int, ...]] = []
    for number, conv in enumerate(convolutions, start=1):
        expected += [tuple(conv.weight.shape), *[(conv.out_channels,)] * (5 if number < len(convolutions) else 1)]
    shapes = [np.shape(a) for a in arrays] if isinstance(arrays, list) else []
    if shapes != expected or any(a.dtype != np.float32 for a in arrays):
        raise InputError(f"not the {len(expected)} float32 arrays of the SqueezeNet: give {KINDS}")
    values = iter(arrays)
    for conv in convolutions:
        weight, bias = next(values)[:, :, ::-1, ::-1], next(values)
        if conv is not convolutions[-1]:
            beta, gamma, mean, inv_std = (next(values) for _ in range(4))
            weight, bias = weight * (gamma * inv_std)[:, None, None, None], (bias - mean) * gamma * inv_std + beta
        if conv is convolutions[0]:
            weight = weight[:, ::-1]
        folded = {"weight": weight, "bias": bias}
        conv.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in folded.items()})
    return network


def _resnet(checkpoint: Any) -> ResNet:
    """Load a ResNet from a state dict or a checkpoint with one; tensor names give the number of blocks.

    Raises:
        InputError: the content is not a state dict of a ResNet with 365 outputs.
    """
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, Mapping) else {}
    state = {str(key).removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    names = [key.split(".") for key in state]
    blocks = tuple(len({name[1] for name in names if name[0] == f"layer{number}"}) for number in range(1, 5))
    if not 0 < min(blocks) <= max(blocks) <= MAX_BLOCKS or "fc.weight" not in state:
        raise InputError(f"not a state dict of a ResNet: give {KINDS}")
    network = ResNet(blocks, deep="layer1.0.conv3.weight" in state)
    try:
        keys = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise InputError(f"tensors do not fit a ResNet with {NUM_LABELS} outputs ({first}): give {KINDS}") from error
    # Checkpoints from before 2018 have no batch counters.
    mismatched = [key for key in (*keys.missing_keys, *keys.unexpected_keys) if not key.endswith("num_batches_tracked")]
    if mismatched:
        raise InputError(
            f"state dict does not match a ResNet: missing or unexpected tensor {mismatched[0]}; give {KINDS}"
        )
    return network
