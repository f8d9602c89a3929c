"""What the networks' weights look like before the first step (paper section 2.4, published code)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vgan.config import ModelConfig
from vgan.models.classifier import Classifier
from vgan.models.discriminator import Discriminator
from vgan.models.generator import TwoStreamGenerator

CONFIG = ModelConfig(base=16)
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)


def layers(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kinds)]


def assert_normal(sample: Tensor, mean: float, std: float) -> None:
    """Mean and spread within five standard errors, and no tail that a normal distribution does not have."""
    sample = sample.detach()
    n = sample.numel()
    assert abs(float(sample.mean()) - mean) < 5 * std / n**0.5
    assert abs(float(sample.std()) - std) < 5 * std / (2 * n) ** 0.5
    assert 0.66 < float(((sample - mean).abs() < std).float().mean()) < 0.70 or n < 5000


@pytest.mark.parametrize("kind", [TwoStreamGenerator, Discriminator])
def test_network_convolutions_start_small_and_without_bias(kind: type[nn.Module]) -> None:
    torch.manual_seed(1)
    found = layers(kind(CONFIG), CONVOLUTIONS)
    assert len(found) == {TwoStreamGenerator: 11, Discriminator: 5}[kind]
    for layer in found:
        assert_normal(layer.weight, 0.0, 0.01)
        assert (layer.bias == 0).all()


@pytest.mark.parametrize(("kind", "eps"), [(TwoStreamGenerator, 1e-5), (Discriminator, 1e-3)])
def test_network_batch_norms_start_near_one_with_the_published_eps(kind: type[nn.Module], eps: float) -> None:
    torch.manual_seed(2)
    found = layers(kind(CONFIG), NORMS)
    assert len(found) == {TwoStreamGenerator: 8, Discriminator: 3}[kind]
    assert_normal(torch.cat([norm.weight for norm in found]), 1.0, 0.02)
    assert all((norm.bias == 0).all() for norm in found)
    assert {(norm.eps, norm.momentum) for norm in found} == {(eps, 0.1)}


def test_classifier_trunk_starts_as_the_discriminators_and_the_head_as_pytorchs() -> None:
    torch.manual_seed(3)
    network = Classifier(CONFIG, 10, 0.5)
    for layer in layers(network.trunk, CONVOLUTIONS):
        assert_normal(layer.weight, 0.0, 0.01)
    bound = network.head.weight[0].numel() ** -0.5
    weight = network.head.weight.detach()
    assert 0.99 * bound < float(weight.abs().max()) <= bound
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.02)  # uniform, not normal
    assert (network.head.bias != 0).all()
