"""Initial weights of the networks (paper section 2.4, published code)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks import GENERATORS
from torch import Tensor, nn

from vgan.models.classifier import Classifier
from vgan.models.config import ModelConfig
from vgan.models.discriminator import Discriminator
from vgan.models.factory import make_generator

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)


def config(name: str, **more: str) -> ModelConfig:
    return ModelConfig(**GENERATORS[name], base_width=16, **more)


# Network, number of convolutions, and numbers of batch norms of eps 1e-5 (generators) and 1e-3 (D, encoders).
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int, int]] = {
    "two_stream": (lambda: make_generator(config("two_stream")), 11, 8, 0),
    "two_stream that resizes": (lambda: make_generator(config("two_stream", upsample="resize")), 11, 8, 0),
    "one_stream": (lambda: make_generator(config("one_stream")), 5, 4, 0),
    "future": (lambda: make_generator(config("future")), 5 + 11, 8, 3),
    "wide_future": (lambda: make_generator(config("wide_future")), 4 + 10, 7, 3),
    "autoencoder": (lambda: make_generator(config("autoencoder")), 5 + 11, 8, 3),
    "discriminator": (lambda: Discriminator(config("two_stream")), 5, 0, 3),
    "discriminator of wide_future": (lambda: Discriminator(config("wide_future")), 5, 0, 3),
    "spectral discriminator": (lambda: Discriminator(config("two_stream", discriminator_norm="spectral")), 5, 0, 0),
}


def make(name: str) -> nn.Module:
    torch.manual_seed(1)
    return NETWORKS[name][0]()


def layers(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kinds)]


def weight(layer: nn.Module) -> Tensor:
    """Return the trained weights; with spectral normalization those before the division."""
    return dict(layer.named_parameters()).get("parametrizations.weight.original", layer.weight)


def assert_normal(sample: Tensor, mean: float, std: float) -> None:
    """Check mean and deviation within five standard errors, and the maximum that a normal distribution has."""
    sample = sample.detach()
    n = sample.numel()
    assert abs(float(sample.mean()) - mean) < 5 * std / n**0.5
    assert abs(float(sample.std()) - std) < 5 * std / (2 * n) ** 0.5
    assert 0.66 < float(((sample - mean).abs() < std).float().mean()) < 0.70 or n < 5000


@pytest.mark.parametrize("name", NETWORKS)
def test_network_convolutions_start_small_and_with_biases_of_zero(name: str) -> None:
    result = layers(make(name), CONVOLUTIONS)
    assert len(result) == NETWORKS[name][1]
    for layer in result:
        assert_normal(weight(layer), 0.0, 0.01)
        assert (layer.bias == 0).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_network_batch_norms_start_near_one_with_the_published_eps(name: str) -> None:
    result = layers(make(name), NORMS)
    counts = NETWORKS[name][2:]
    assert [sum(norm.eps == eps for norm in result) for eps in (1e-5, 1e-3)] == list(counts)
    assert len(result) == sum(counts)
    for norm in result:
        assert_normal(norm.weight, 1.0, 0.02)
        assert (norm.bias == 0).all()
        assert norm.momentum == 0.1


def test_networks_of_another_seed_start_elsewhere() -> None:
    first = make("two_stream").stem[0].weight
    torch.manual_seed(2)
    assert not torch.equal(NETWORKS["two_stream"][0]().stem[0].weight, first)


def test_classifier_trunk_starts_as_the_discriminators_and_the_head_as_pytorchs() -> None:
    torch.manual_seed(3)
    network = Classifier(config("two_stream"), 10, 0.5)
    for layer in layers(network.trunk, CONVOLUTIONS):
        assert_normal(layer.weight, 0.0, 0.01)
    bound = network.head.weight[0].numel() ** -0.5
    head = network.head.weight.detach()
    assert 0.99 * bound < float(head.abs().max()) <= bound
    assert float(head.std()) == pytest.approx(bound / 3**0.5, rel=0.02)  # uniform, not normal
    assert (network.head.bias != 0).all()
