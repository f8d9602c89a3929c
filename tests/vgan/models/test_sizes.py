"""Every network at every width, length and size that the settings allow."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from networks import GENERATORS, assert_shapes, clips, given

from vgan.models.classifier import Classifier
from vgan.models.config import ModelConfig
from vgan.models.factory import make_generator, make_networks

# A Latin square: every width is combined with every length and every size.
SIZES = [(1 + (i + j) % 3, 16 * (1 + i), 32 * 2**j) for i, j in product(range(3), range(3))]


@pytest.mark.parametrize(("base", "num_frames", "size"), SIZES)
@pytest.mark.parametrize("name", GENERATORS)
def test_networks_fit_each_other_at_any_width_length_and_size(name: str, base: int, num_frames: int, size: int) -> None:
    for upsample in ("transpose", "resize"):
        config = ModelConfig(
            **GENERATORS[name], base_width=base, z_size=3, num_frames=num_frames, size=size, upsample=upsample
        )
        with torch.device("meta"):  # shapes only
            networks = {"classifier": Classifier(config, 7, 0.5)} | make_networks(config)
        classifier, generator, *rest = (network.eval() for network in networks.values())
        streams = generator(given(config).to("meta"))
        assert_shapes(streams, config)
        assert classifier(streams.video).shape == (2, 7)
        assert [D(streams.video).shape for D in rest] == [(2, 2)] * (name != "autoencoder")


@pytest.mark.parametrize("upsample", ["transpose", "resize"])
@pytest.mark.parametrize("name", GENERATORS)
def test_generator_draws_in_range_and_learns_in_every_layer(name: str, upsample: str) -> None:
    config = ModelConfig(**GENERATORS[name], base_width=2, z_size=3, num_frames=48, size=32, upsample=upsample)
    torch.manual_seed(0)
    G = make_generator(config)
    streams = G(given(config))
    for pictures in (p for p in (streams.video, streams.foreground, streams.background) if p is not None):
        assert pictures.isfinite().all()
        assert pictures.abs().max() <= 1
    if streams.mask is not None:
        assert streams.mask.min() >= 0
        assert streams.mask.max() <= 1
    (streams.video * clips(config)).sum().backward()
    still = [
        key for key, p in G.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert not still


def test_make_networks_gives_the_autoencoder_no_discriminator() -> None:
    made = {name: set(make_networks(ModelConfig(**kind, base_width=1))) for name, kind in GENERATORS.items()}
    assert made.pop("autoencoder") == {"generator"}
    assert all(names == {"generator", "discriminator"} for names in made.values())
