"""Networks of the paper by name, and inputs for each of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vgan.models.config import ModelConfig
from vgan.models.generator import GeneratorOutput

GENERATORS: dict[str, dict[str, Any]] = {
    "two_stream": {"architecture": "two_stream"},
    "one_stream": {"architecture": "one_stream"},
    "future": {"architecture": "future", "future_encoder": "paper"},
    "wide_future": {"architecture": "future", "future_encoder": "reference"},
    "autoencoder": {"architecture": "autoencoder"},
}


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def clips(config: ModelConfig, num: int = 2) -> Tensor:
    """Return clips (num, 3, T, H, W) of reproducible noise in [-1, 1)."""
    shape = (num, 3, config.num_frames, config.size, config.size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def given(config: ModelConfig, num: int = 2) -> Tensor:
    """Return inputs for a generator of that kind: noise, images or clips."""
    if config.architecture == "autoencoder":
        return clips(config, num)
    if config.architecture == "future":
        return clips(config, num)[:, :, 0]
    return torch.randn(num, config.z_size, generator=torch.Generator().manual_seed(0))


def assert_shapes(streams: GeneratorOutput, config: ModelConfig, num: int = 2) -> None:
    """Check the shapes of the video and, except for the one-stream generator, of the streams."""
    length, side = config.num_frames, config.size
    assert streams.video.shape == (num, 3, length, side, side)
    if config.architecture == "one_stream":
        assert streams[1:] == (None, None, None)
        return
    assert streams.foreground.shape == (num, 3, length, side, side)
    assert streams.mask.shape == (num, 1, length, side, side)
    assert streams.background.shape == (num, 3, 1, side, side)


def lively(network: nn.Module) -> nn.Module:
    """Set weights large enough that every layer, and therefore every mistake, affects the output."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0.0, 0.3)
    return network
