"""The parts of training that need no Ray: settings, the stop on what is not finite."""

from __future__ import annotations

import pytest
import torch

from cluster.training import TrainConfig, _check_finite


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_naming_it_step_and_rank(value: float) -> None:
    losses = {"loss/generator": torch.tensor(1.0), "loss/discriminator": torch.tensor(value)}
    with pytest.raises(FloatingPointError, match="loss/discriminator not finite at step 12 on rank 1"):
        _check_finite(losses, step=12, rank=1)
    _check_finite({"loss/generator": torch.tensor(1.0)}, step=12, rank=1)
