"""Parts of a training step: random numbers, optimizers, gradient norms, frozen networks, moving average."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vgan.models.config import ModelConfig
from vgan.models.factory import make_networks
from vgan.training.augment import NUM_DRAWS
from vgan.training.config import ObjectiveConfig
from vgan.training.ema import ema_decay_at, update_ema
from vgan.training.engine import LocalEngine, make_optimizer
from vgan.training.gan_step import StepRandomness, freeze_parameters, gradient_norm, train_step

MODEL = ModelConfig(base_width=2, z_size=6, num_frames=16, size=32)


def parts(draws: StepRandomness) -> list[Tensor]:
    return [draws.z, draws.mirrored, draws.augment_real, draws.augment_fake]


# ---- draws -------------------------------------------------------------------------------------------------------


def test_draws_of_a_step_depend_on_seed_and_step_alone() -> None:
    first = parts(StepRandomness.of_step(1, 5, 8, 100))
    torch.manual_seed(7)
    torch.rand(3)  # the global state does not matter
    assert all(torch.equal(a, b) for a, b in zip(first, parts(StepRandomness.of_step(1, 5, 8, 100)), strict=True))
    for seed, step in ((1, 6), (2, 5), (0, 5)):
        other = parts(StepRandomness.of_step(seed, step, 8, 100))
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True) if a.dtype != torch.bool)


def test_draws_leave_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    StepRandomness.of_step(1, 5, 8, 100)
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_are_normal_fair_and_uniform_and_of_each_other_independent() -> None:
    draws = StepRandomness.of_step(0, 1, 4096, 100)
    assert [t.shape for t in parts(draws)] == [(4096, 100), (4096,), (4096, NUM_DRAWS), (4096, NUM_DRAWS)]
    assert abs(float(draws.z.mean())) < 5 / 409_600**0.5
    assert abs(float(draws.z.std()) - 1) < 5 / (2 * 409_600) ** 0.5
    assert draws.mirrored.dtype == torch.bool
    assert abs(float(draws.mirrored.float().mean()) - 0.5) < 5 * 0.5 / 64
    for uniform in (draws.augment_real, draws.augment_fake):
        assert uniform.min() >= 0
        assert uniform.max() < 1
        assert abs(float(uniform.mean()) - 0.5) < 5 * (1 / 12 / uniform.numel()) ** 0.5
    columns = torch.cat([draws.z[:, :2], draws.mirrored[:, None], draws.augment_real, draws.augment_fake], 1)
    correlation = torch.corrcoef(columns.T) - torch.eye(columns.shape[1])
    assert correlation.abs().max() < 5 / 64


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_draws_shared_out_are_the_whole_in_the_order_of_ranks(world_size: int) -> None:
    full = StepRandomness.of_step(3, 9, 8, 6)
    shares = [parts(full.share(rank, world_size)) for rank in range(world_size)]
    assert {len(part) for share in shares for part in share} == {8 // world_size}
    for number, part in enumerate(parts(full)):
        assert torch.equal(torch.cat([share[number] for share in shares]), part)


# ---- optimizers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rate"), [("generator", 2e-4), ("discriminator", 8e-4)])
def test_make_optimizer_is_the_published_adam_at_a_rate_of_its_own_for_d(name: str, rate: float) -> None:
    network = nn.Linear(2, 3)
    adam = make_optimizer(name, network, ObjectiveConfig(discriminator_lr_ratio=4.0))
    (group,) = adam.param_groups
    assert group["lr"] == pytest.approx(rate)
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.5, 0.999), 1e-8, 0)
    assert {id(p) for p in group["params"]} == {id(p) for p in network.parameters()}


# ---- gradients ---------------------------------------------------------------------------------------------------


class Watched(LocalEngine):
    """Optimizer that records the norm of the gradient of its step."""

    def step(self) -> None:
        gradients = [p.grad.double() for p in self.module.parameters() if p.grad is not None]
        self.norm = float(sum(g.square().sum() for g in gradients)) ** 0.5
        super().step()


@pytest.mark.parametrize(
    ("model", "objective"),
    [
        ({}, {}),
        ({}, {"r1_weight": 3.0}),
        ({"discriminator_norm": "spectral"}, {"loss": "hinge", "r1_weight": 1.0}),
        ({"architecture": "future"}, {}),
        ({"architecture": "autoencoder"}, {}),
    ],
)
def test_gradient_norms_are_of_the_gradients_that_the_optimizers_step_by(
    model: dict[str, Any], objective: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    config, aim = dataclasses.replace(MODEL, **model), ObjectiveConfig(**objective)
    engines = {name: Watched(net, make_optimizer(name, net, aim)) for name, net in make_networks(config).items()}
    for step in (1, 2):  # the second must not contain gradients of the first
        draws = StepRandomness.of_step(0, step, 4, 6)
        metrics = train_step(engines, torch.rand(4, 3, 16, 32, 32), draws, config, aim).metrics
        norms = {name: float(metrics[f"gradient/{name}"]) for name in engines}
        assert norms == pytest.approx({name: engine.norm for name, engine in engines.items()}, rel=1e-5)
        assert all(norms.values())


def test_gradient_norm_leaves_no_hook_behind() -> None:
    layer = nn.Linear(2, 1)
    with gradient_norm(layer) as squares:
        layer(torch.ones(1, 2)).sum().backward()
    layer(torch.ones(1, 2)).sum().backward()
    assert len(squares) == 2
    assert sorted(float(s) for s in squares) == pytest.approx([1, 2])  # of the bias, and of two weights


def test_frozen_gives_gradients_back_after_an_error() -> None:
    layer = nn.Linear(2, 2)

    def fail() -> None:
        with freeze_parameters(layer):
            assert not any(p.requires_grad for p in layer.parameters())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(p.requires_grad for p in layer.parameters())


def test_frozen_lets_gradients_through_without_keeping_any() -> None:
    layer, x = nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
    with freeze_parameters(layer):
        layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.detach())
    assert all(p.grad is None for p in layer.parameters())


# ---- the moving average ------------------------------------------------------------------------------------------


def test_update_average_decays_parameters_and_statistics_and_copies_counters() -> None:
    average, network = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    nn.init.constant_(average.weight, 1.0)
    nn.init.constant_(network.weight, 3.0)
    network.running_mean.fill_(7.0)
    network.num_batches_tracked.fill_(5)
    update_ema(average, network, decay=0.75)
    update_ema(average, network, decay=0.75)
    assert average.weight.tolist() == pytest.approx([3 - 2 * 0.75**2] * 2)
    assert average.running_mean.tolist() == pytest.approx([7 - 7 * 0.75**2] * 2)
    assert int(average.num_batches_tracked) == 5
    assert network.weight.tolist() == [3.0, 3.0]


def test_average_decay_grows_to_what_was_asked_for() -> None:
    decays = [ema_decay_at(0.9, step) for step in (1, 8, 71, 72, 10_000)]
    assert decays == pytest.approx([2 / 11, 0.5, 72 / 81, 73 / 82, 0.9])
    assert max(decays) == 0.9
