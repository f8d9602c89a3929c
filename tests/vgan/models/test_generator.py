"""The two-stream generator against its layer table written out by hand (paper section 2.2, published code)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgan.config import ModelConfig
from vgan.models.generator import TwoStreamGenerator

TINY = ModelConfig(base=2, z_size=5, num_frames=16, size=32)


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def make(config: ModelConfig = TINY, seed: int = 0) -> TwoStreamGenerator:
    torch.manual_seed(seed)
    return TwoStreamGenerator(config)


def lively(network: nn.Module) -> nn.Module:
    """Weights large enough that every layer's output, and so every mistake, is visible."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0.0, 0.3)
    return network


def test_generator_at_the_papers_size_has_the_published_parameters() -> None:
    G = TwoStreamGenerator(ModelConfig())
    parts = {name: count(getattr(G, name)) for name in ("trunk", "rgb", "mask", "background")}
    assert parts == {"trunk": 12_651_328, "rgb": 12_291, "mask": 4_097, "background": 3_577_667}
    assert count(G) == 16_245_383


@pytest.mark.parametrize("num_frames", [16, 32, 48])
@pytest.mark.parametrize("size", [32, 64, 128])
@torch.no_grad()
def test_generator_streams_have_the_length_and_size_asked_for(num_frames: int, size: int) -> None:
    streams = make(ModelConfig(base=1, z_size=3, num_frames=num_frames, size=size))(torch.randn(2, 3))
    assert streams.video.shape == streams.foreground.shape == (2, 3, num_frames, size, size)
    assert streams.mask.shape == (2, 1, num_frames, size, size)
    assert streams.background.shape == (2, 3, 1, size, size)


@torch.no_grad()
def test_generator_composite_is_mask_times_foreground_over_one_background_frame() -> None:
    streams = lively(make())(torch.randn(3, 5))
    m, f, b = (getattr(streams, name).double().numpy() for name in ("mask", "foreground", "background"))
    assert m.std() > 0.05  # neither stream has the picture to itself
    for t in range(16):
        for colour in range(3):
            expected = m[:, 0, t] * f[:, colour, t] + (1 - m[:, 0, t]) * b[:, colour, 0]
            torch.testing.assert_close(
                streams.video[:, colour, t].double(), torch.from_numpy(expected), rtol=0, atol=1e-6
            )


@torch.no_grad()
def test_generator_values_stay_in_range_for_extreme_codes() -> None:
    streams = lively(make())(torch.randn(2, 5) * 1e4)
    for pictures in (streams.video, streams.foreground, streams.background):
        assert pictures.abs().max() <= 1
    assert streams.mask.min() >= 0
    assert streams.mask.max() <= 1


def test_generator_one_code_drives_all_streams() -> None:
    z = torch.randn(2, 5, requires_grad=True)
    streams = make()(z)
    for stream in (streams.foreground, streams.mask, streams.background):
        (gradient,) = torch.autograd.grad((stream * torch.randn_like(stream)).sum(), z, retain_graph=True)
        assert (gradient != 0).all()


@torch.no_grad()
def test_generator_equals_its_layer_table_written_out() -> None:
    G = lively(make())
    for name, buffer in G.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    G.eval()
    w, z = G.state_dict(), torch.randn(2, 5)

    streams = G(z)

    def norm_relu(x: Tensor, name: str) -> Tensor:
        statistics = [w[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(x, *statistics, eps=1e-5))

    def up(x: Tensor, name: str, stride: int = 2, padding: int = 1) -> Tensor:
        convolve = F.conv_transpose3d if x.ndim == 5 else F.conv_transpose2d
        return convolve(x, w[f"{name}.weight"], w[f"{name}.bias"], stride, padding)

    x, y = z.reshape(2, 5, 1, 1, 1), z.reshape(2, 5, 1, 1)
    x, y = (norm_relu(up(v, f"{n}.0", 1, 0), f"{n}.1") for v, n in ((x, "trunk"), (y, "background")))
    for layer in (3, 4, 5):
        x, y = (norm_relu(up(v, f"{n}.{layer}.0"), f"{n}.{layer}.1") for v, n in ((x, "trunk"), (y, "background")))
    torch.testing.assert_close(streams.foreground, torch.tanh(up(x, "rgb.0")))
    torch.testing.assert_close(streams.mask, torch.sigmoid(up(x, "mask.0")))
    torch.testing.assert_close(streams.background, torch.tanh(up(y, "background.6"))[:, :, None])
