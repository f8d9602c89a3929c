"""The parts of training that need no Ray: settings, the stop on what is not finite."""

from __future__ import annotations

import pytest
import torch

from cluster.training.config import TrainConfig
from cluster.training.worker import all_finite, divergence_message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 7, "workers": "8"}, "batch_size=7 must be at least workers=8"),
        ({"batch_size": 7, "workers": "1-8"}, "batch_size=7 must be at least workers=8"),
        ({"workers": "0"}, "workers must be a number or a range like 1-8, got '0'"),
        ({"workers": "4-2"}, "a range like 1-8, got '4-2'"),
        ({"workers": "many"}, "a range like 1-8, got 'many'"),
        ({"zero_stage": 3}, "zero_stage must be 0, 1 or 2"),
        ({"precision": "fp8"}, "precision must be one of"),
        (
            {"batch_size": 7, "workers": "2", "gradient_accumulation_steps": 4},
            "batch_size=7 must be at least workers=2 times gradient_accumulation_steps=4",
        ),
        ({"loss_scale": 8.0}, "loss_scale must be 0 or more, and 0 unless precision=fp16, got 8.0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"step_timeout_s": 0}, "step_timeout_s must be at least 1"),
        ({"max_grad_norm": -1.0}, "max_grad_norm and max_failures must be 0 or more"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"name": "../x"}, "name may hold"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize(("workers", "expected"), [("1", (1, 1)), (2, (2, 2)), ("1-8", (1, 8)), ("3-3", (3, 3))])
def test_workers_are_a_number_or_a_range(workers: object, expected: tuple[int, int]) -> None:
    assert TrainConfig(workers=workers).worker_range == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_is_found_and_named(value: float) -> None:
    losses = {"loss/generator": torch.tensor(1.0), "loss/discriminator": torch.tensor([value])}
    assert all_finite({"loss/generator": torch.tensor(1.0)})
    assert not all_finite(losses)
    told = divergence_message({name: float(v) for name, v in losses.items()}, step=12)
    assert told.startswith("loss/discriminator not finite at step 12: stopped, the previous checkpoint is kept")
