"""The discriminator and the classifier on its trunk, against the layer table written out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vgan.config import ModelConfig
from vgan.models.classifier import Classifier
from vgan.models.discriminator import Discriminator

TINY = ModelConfig(base=2, num_frames=16, size=32)


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def clips(config: ModelConfig = TINY, num: int = 2) -> torch.Tensor:
    shape = (num, 3, config.num_frames, config.size, config.size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_discriminator_at_the_papers_size_has_the_published_parameters() -> None:
    D = Discriminator(ModelConfig())
    assert count(D) == 11_057_858
    assert count(D.trunk) == 11_025_088


def test_classifier_with_101_classes_has_the_published_parameters() -> None:
    assert count(Classifier(ModelConfig(), 101, 0.5)) == 12_679_973


@pytest.mark.parametrize("num_frames", [16, 32, 48])
@pytest.mark.parametrize("size", [32, 64, 128])
@torch.no_grad()
def test_discriminator_gives_two_logits_and_the_classifier_one_a_class(num_frames: int, size: int) -> None:
    config = ModelConfig(base=1, num_frames=num_frames, size=size)
    assert Discriminator(config)(clips(config)).shape == (2, 2)
    assert Classifier(config, 7, 0.5)(clips(config)).shape == (2, 7)


@torch.no_grad()
def test_discriminator_equals_its_layer_table_written_out() -> None:
    D = Discriminator(TINY)
    for name, tensor in D.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.001, 0.003) if "running" in name else nn.init.normal_(tensor, 0.0, 0.1)
    w = D.eval().state_dict()
    x = F.leaky_relu(F.conv3d(clips(), w["trunk.0.0.weight"], w["trunk.0.0.bias"], 2, 1), 0.2)
    for layer in (1, 2, 3):
        name = f"trunk.{layer}"
        x = F.conv3d(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"], 2, 1)
        # running variances near 1e-3, so that the published eps of 1e-3 makes a difference
        x = F.batch_norm(x, *(w[f"{name}.1.{k}"] for k in ("running_mean", "running_var", "weight", "bias")), eps=1e-3)
        x = F.leaky_relu(x, 0.2)
    expected = F.conv3d(x, w["head.weight"], w["head.bias"]).reshape(2, 2)
    torch.testing.assert_close(D(clips()), expected)


@torch.no_grad()
def test_classifier_is_a_linear_head_on_the_discriminators_trunk() -> None:
    D, network = Discriminator(TINY), Classifier(TINY, 4, 0.5)
    network.trunk.load_state_dict(D.trunk.state_dict())
    features = D.eval().trunk(clips())  # (2, 16, 1, 2, 2)
    expected = torch.einsum("bcthw,kcthw->bk", features, network.head.weight) + network.head.bias
    torch.testing.assert_close(network.eval()(clips()), expected)


@torch.no_grad()
def test_classifier_drops_whole_channels_while_it_trains() -> None:
    network = Classifier(TINY, 4, 0.5)
    network.trunk = nn.Identity()
    network.head = nn.Flatten()  # what the dropout gives is the output
    seen = network.train()(torch.ones(8, 16, 1, 2, 2)).reshape(8, 16, 4)
    assert {float(v) for v in seen.unique()} == {0.0, 2.0}
    assert (seen.amin(2) == seen.amax(2)).all()
