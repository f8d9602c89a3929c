"""Outputs and streams of the generators, compared with the layer table written out by hand.

Paper section 2.2 and published code; test_layer_tables.py tests their structure.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import GENERATORS, given, lively
from torch import Tensor, nn

from vgan.models.config import ModelConfig
from vgan.models.factory import make_generator
from vgan.models.generator import Heads, OneStreamGenerator, TwoStreamGenerator
from vgan.models.layers import upsample_layer

TINY = ModelConfig(base_width=2, z_size=5, num_frames=16, size=32)


def make(config: ModelConfig = TINY, seed: int = 0) -> TwoStreamGenerator:
    torch.manual_seed(seed)
    return TwoStreamGenerator(config)


@torch.no_grad()
def test_generator_composite_is_mask_times_foreground_over_one_background_frame() -> None:
    streams = lively(make())(torch.randn(3, 5))
    m, f, b = (getattr(streams, name).double().numpy() for name in ("mask", "foreground", "background"))
    assert m.std() > 0.05  # both streams contribute
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


@torch.no_grad()
def test_generator_shows_the_still_background_where_the_mask_is_closed_and_the_foreground_where_it_is_open() -> None:
    G = lively(make())
    nn.init.constant_(G.heads.mask.bias, -1e4)
    streams = G(torch.randn(2, 5))
    assert (streams.mask == 0).all()
    torch.testing.assert_close(streams.video, streams.background.expand_as(streams.video))
    nn.init.constant_(G.heads.mask.bias, 1e4)
    streams = G(torch.randn(2, 5))
    torch.testing.assert_close(streams.video, streams.foreground)


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
    x, y = (norm_relu(up(v, f"{n}.0", 1, 0), f"{n}.1") for v, n in ((x, "stem"), (y, "background.0")))
    for layer in range(3):
        names = f"trunk.{layer}", f"background.1.{layer}"
        x, y = (norm_relu(up(v, f"{n}.0"), f"{n}.1") for v, n in zip((x, y), names, strict=True))
    torch.testing.assert_close(streams.foreground, torch.tanh(up(x, "heads.rgb")))
    torch.testing.assert_close(streams.mask, torch.sigmoid(up(x, "heads.mask")))
    torch.testing.assert_close(streams.background, torch.tanh(up(y, "background.2"))[:, :, None])


@torch.no_grad()
def test_one_stream_generator_is_the_foreground_alone() -> None:
    two, one = lively(make()), OneStreamGenerator(TINY)
    weights = {k.replace("heads.rgb", "rgb"): v for k, v in two.state_dict().items()}
    one.load_state_dict({k: v for k, v in weights.items() if not k.startswith(("heads.mask", "background"))})
    z = torch.randn(3, 5)
    assert torch.equal(one(z).video, two(z).foreground)


@pytest.mark.parametrize("upsample", ["transpose", "resize"])
def test_heads_computed_as_one_convolution_equal_two_and_learn_alike(upsample: str) -> None:
    torch.manual_seed(0)
    heads, x = lively(Heads(6, upsample)), torch.randn(2, 6, 3, 5, 4)
    weigh = [torch.randn(2, channels, 6, 10, 8) for channels in (3, 1)]
    together = heads(x)
    apart = torch.tanh(heads.rgb(x)), torch.sigmoid(heads.mask(x))
    results = []
    for streams in (together, apart):
        loss = sum((stream * weight).sum() for stream, weight in zip(streams, weigh, strict=True))
        results.append([*streams, *torch.autograd.grad(loss, list(heads.parameters()))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_double_by_resizing_repeats_every_pixel_before_it_convolves() -> None:
    layer, x = upsample_layer(3, 2, 4, "resize"), torch.randn(2, 2, 3, 5, 4)
    larger = x
    for axis in (2, 3, 4):
        larger = larger.repeat_interleave(2, axis)
    (convolution,) = (module for module in layer.modules() if isinstance(module, nn.Conv3d))
    torch.testing.assert_close(layer(x), F.conv3d(larger, convolution.weight, convolution.bias, 1, 1))


@pytest.mark.parametrize("name", GENERATORS)
@torch.no_grad()
def test_generator_in_eval_mode_draws_each_clip_regardless_of_the_others(name: str) -> None:
    config = ModelConfig(**GENERATORS[name], base_width=2, z_size=5, num_frames=16, size=32)
    torch.manual_seed(0)
    G, x = lively(make_generator(config)), given(config, 4)
    assert not torch.allclose(G.train()(x).video[:1], G(x[:2]).video[:1], atol=1e-3)  # batch statistics
    torch.testing.assert_close(G.eval()(x).video[:1], G(x[:1]).video)
