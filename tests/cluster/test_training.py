"""The parts of training that need no Ray: settings, noise, the stop on what is not finite."""

from __future__ import annotations

import pytest
import torch

from cluster.training import TrainConfig, _check_finite, noise


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 7, "workers": 2}, "multiple of workers=2"),
        ({"zero_stage": 2}, "zero_stage must be 0 or 1"),
        ({"precision": "fp16"}, "precision must be one of"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"name": "../x"}, "name may hold"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_noise_depends_on_seed_and_step_alone() -> None:
    assert torch.equal(noise(1, 5, 8, 100), noise(1, 5, 8, 100))
    assert not torch.equal(noise(1, 5, 8, 100), noise(1, 6, 8, 100))
    assert not torch.equal(noise(1, 5, 8, 100), noise(2, 5, 8, 100))
    assert abs(float(noise(0, 1, 512, 100).std()) - 1) < 0.02


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_naming_it_step_and_rank(value: float) -> None:
    losses = {"loss/generator": torch.tensor(1.0), "loss/discriminator": torch.tensor(value)}
    with pytest.raises(FloatingPointError, match="loss/discriminator not finite at step 12 on rank 1"):
        _check_finite(losses, step=12, rank=1)
    _check_finite({"loss/generator": torch.tensor(1.0)}, step=12, rank=1)
