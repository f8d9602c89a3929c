"""Outputs of the discriminator and the classifier, compared with the layer table written out by hand.

test_layer_tables.py tests their structure.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import clips, lively
from torch import nn

from vgan.models.classifier import Classifier
from vgan.models.config import ModelConfig
from vgan.models.discriminator import Discriminator
from vgan.models.layers import remove_spectral_norm

TINY = ModelConfig(base_width=2, num_frames=16, size=32)
SPECTRAL = ModelConfig(base_width=2, num_frames=16, size=32, discriminator_norm="spectral")


@torch.no_grad()
def test_discriminator_equals_its_layer_table_written_out() -> None:
    D = Discriminator(TINY)
    for name, tensor in D.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.001, 0.003) if "running" in name else nn.init.normal_(tensor, 0.0, 0.1)
    w = D.eval().state_dict()
    x = F.leaky_relu(F.conv3d(clips(TINY), w["trunk.0.0.weight"], w["trunk.0.0.bias"], 2, 1), 0.2)
    for layer in (1, 2, 3):
        name = f"trunk.{layer}"
        x = F.conv3d(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"], 2, 1)
        # running variances near 1e-3, so that the published eps of 1e-3 makes a difference
        x = F.batch_norm(x, *(w[f"{name}.1.{k}"] for k in ("running_mean", "running_var", "weight", "bias")), eps=1e-3)
        x = F.leaky_relu(x, 0.2)
    expected = F.conv3d(x, w["head.weight"], w["head.bias"]).reshape(2, 2)
    torch.testing.assert_close(D(clips(TINY)), expected)


@torch.no_grad()
def test_classifier_is_a_linear_head_on_the_discriminators_trunk() -> None:
    D, network = Discriminator(TINY), Classifier(TINY, 4, 0.5)
    network.trunk.load_state_dict(D.trunk.state_dict())
    features = D.eval().trunk(clips(TINY))  # (2, 16, 1, 2, 2)
    expected = torch.einsum("bcthw,kcthw->bk", features, network.head.weight) + network.head.bias
    torch.testing.assert_close(network.eval()(clips(TINY)), expected)


@torch.no_grad()
def test_classifier_drops_whole_channels_while_it_trains() -> None:
    network = Classifier(TINY, 4, 0.5)
    network.trunk = nn.Identity()
    network.head = nn.Flatten()  # the output is that of the dropout
    output = network.train()(torch.ones(8, 16, 1, 2, 2)).reshape(8, 16, 4)
    assert {float(v) for v in output.unique()} == {0.0, 2.0}
    assert (output.amin(2) == output.amax(2)).all()


@torch.no_grad()
def test_spectral_norm_holds_every_layers_largest_singular_value_at_one() -> None:
    torch.manual_seed(0)
    D = lively(Discriminator(SPECTRAL)).train()
    layers = [module for module in D.modules() if isinstance(module, nn.Conv3d)]
    assert len(layers) == 5
    for _ in range(50):  # each pass is one power iteration
        D(clips(SPECTRAL))
    for layer in layers:
        assert float(torch.linalg.matrix_norm(layer.weight.flatten(1), 2)) == pytest.approx(1, abs=1e-2)


@torch.no_grad()
def test_spectral_norm_makes_logits_independent_of_the_weights_scale() -> None:
    torch.manual_seed(0)
    D = lively(Discriminator(SPECTRAL)).eval()
    before = D(clips(SPECTRAL))
    for name, parameter in D.named_parameters():
        if not name.endswith("bias"):
            parameter.mul_(4)  # exact in binary
    torch.testing.assert_close(D(clips(SPECTRAL)), before)


def test_fix_spectrum_changes_no_output_and_leaves_plain_weights() -> None:
    torch.manual_seed(0)
    network = lively(Classifier(SPECTRAL, 4, 0.5)).eval()
    before = network(clips(SPECTRAL))
    remove_spectral_norm(network)
    torch.testing.assert_close(network(clips(SPECTRAL)), before)
    plain = Classifier(ModelConfig(base_width=2, num_frames=16, size=32, discriminator_norm="spectral"), 4, 0.5)
    assert "trunk.0.0.weight" not in plain.state_dict()
    assert {k for k in network.state_dict() if k.startswith("trunk.0")} == {"trunk.0.0.weight", "trunk.0.0.bias"}
    layer = network.trunk[0][0]
    layer.reset_parameters()  # would have no effect on weights that are computed
    assert not torch.allclose(network(clips(SPECTRAL)), before)


def test_settle_gives_a_spectral_trunk_the_layers_of_the_papers() -> None:
    torch.manual_seed(0)
    spectral, plain = Classifier(SPECTRAL, 4, 0.5), Classifier(TINY, 4, 0.5)
    acting = [layer.weight.detach().clone() for layer in spectral.eval().modules() if isinstance(layer, nn.Conv3d)]
    spectral.prepare_for_finetuning()
    assert {k: v.shape for k, v in spectral.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    fixed = [layer.weight for layer in spectral.modules() if isinstance(layer, nn.Conv3d)]
    assert all(torch.equal(a, b) for a, b in zip(acting, fixed, strict=True))
    assert spectral(clips(SPECTRAL)).shape == (2, 4)


def test_settle_leaves_a_trunk_with_batch_norm_alone() -> None:
    network = Classifier(TINY, 4, 0.5)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network.prepare_for_finetuning()
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
