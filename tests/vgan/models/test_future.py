"""Data flow of both future generators and the autoencoder (paper sections 3.2 and 3.4).

test_layer_tables.py tests their structure.
"""

from __future__ import annotations

import pytest
import torch
from networks import GENERATORS, clips, lively
from torch import nn

from vgan.models.config import ModelConfig
from vgan.models.discriminator import Discriminator
from vgan.models.factory import make_generator


def make(name: str, **more: int) -> tuple[ModelConfig, nn.Module]:
    config = ModelConfig(**GENERATORS[name], **{"base_width": 2, "z_size": 5, "num_frames": 16, "size": 32} | more)
    torch.manual_seed(0)
    return config, lively(make_generator(config)).eval()


@torch.no_grad()
def test_future_generator_draws_from_a_code_of_the_image() -> None:
    config, G = make("future")
    image = clips(config)[:, :, 0]
    code = G.encoder(image)
    assert code.shape == (2, 5, 1, 1)
    assert torch.equal(G(image).video, G.generator(code.flatten(1)).video)


@torch.no_grad()
def test_wide_future_generator_draws_both_streams_from_one_map_of_the_image() -> None:
    config, G = make("wide_future")
    image = clips(config)[:, :, 0]
    code = G.encoder(image)
    assert code.shape == (2, 32, 2, 2)
    streams = G(image)
    x = G.trunk(G.stem(code.unsqueeze(2)))
    foreground, mask, background = torch.tanh(G.heads.rgb(x)), torch.sigmoid(G.heads.mask(x)), G.background(code)
    torch.testing.assert_close(streams.foreground, foreground)
    torch.testing.assert_close(streams.mask, mask)
    torch.testing.assert_close(streams.background[:, :, 0], background)
    for t in range(16):
        expected = mask[:, :, t] * foreground[:, :, t] + (1 - mask[:, :, t]) * background
        torch.testing.assert_close(streams.video[:, :, t], expected)


@pytest.mark.parametrize("name", ["future", "wide_future"])
def test_future_generators_see_the_whole_image_in_every_stream(name: str) -> None:
    config, G = make(name)
    image = clips(config)[:, :, 0].requires_grad_()
    streams = G(image)
    for stream in streams:
        (gradient,) = torch.autograd.grad((stream * torch.randn_like(stream)).sum(), image, retain_graph=True)
        assert (gradient != 0).flatten(1).float().mean(1).min() > 0.9  # some ReLUs may be inactive


@torch.no_grad()
def test_autoencoder_redraws_from_codes_of_the_whole_clip() -> None:
    config, A = make("autoencoder", num_frames=32)
    video = clips(config)
    code = A.encode(video)
    assert code.shape == (2, 5)
    assert torch.equal(A(video).video, A.decoder(code).video)
    for t in (0, 31):
        other = video.clone()
        other[:, :, t] = 0
        assert (A.encode(other) != code).all()


@torch.no_grad()
def test_autoencoders_encoder_is_the_discriminator_with_a_longer_last_layer() -> None:
    config, A = make("autoencoder")
    D = Discriminator(config)
    D.trunk.load_state_dict(A.encoder[0].state_dict())
    features = D.eval().trunk(clips(config))
    torch.testing.assert_close(A.encode(clips(config)), A.encoder[1](features).flatten(1))
