"""Cost estimate of a training run, compared with the networks themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cluster.training.cost_estimate import ResourceEstimate, check_memory, estimate_resources, measure_matmul_flops
from vgan.errors import InputError
from vgan.models.config import ModelConfig
from vgan.models.factory import make_networks
from vgan.training.config import ObjectiveConfig
from vgan.training.engine import LocalEngine, make_optimizer
from vgan.training.gan_step import StepRandomness, train_step

SMALL = ModelConfig(base_width=4, num_frames=16, size=32)
KINDS = ("two_stream", "one_stream", "future", "autoencoder")


def size_of(
    model: ModelConfig = SMALL, objective: ObjectiveConfig | None = None, **changes: object
) -> ResourceEstimate:
    settings = {"batch_size": 8, "clips": 100, "zero_stage": 0, "precision": "fp32"} | changes
    return estimate_resources(model, objective or ObjectiveConfig(), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_sizing_counts_the_flop_of_a_real_step(kind: str) -> None:
    model, objective = replace(SMALL, architecture=kind), ObjectiveConfig()
    estimate = size_of(model)
    networks = make_networks(model)
    engines = {n: LocalEngine(net, make_optimizer(n, net, objective)) for n, net in networks.items()}
    with FlopCounterMode(display=False) as counter:
        train_step(
            engines, torch.rand(4, 3, 16, 32, 32), StepRandomness.of_step(0, 1, 4, model.z_size), model, objective
        )
    assert estimate.flop == counter.get_total_flops() / 4
    assert estimate.parameters == {n: sum(p.numel() for p in net.parameters()) for n, net in networks.items()}


def test_sizing_of_the_paper_model_is_near_its_known_cost() -> None:
    estimate = size_of(ModelConfig())
    assert 45e9 < estimate.flop < 55e9
    assert estimate.parameters == {"generator": 16_245_383, "discriminator": 11_057_858}


@pytest.mark.parametrize(
    "objective",
    [
        ObjectiveConfig(augment=["color", "translation", "cutout"], horizontal_flip=True, loss="hinge"),
        ObjectiveConfig(nearest_match_weight=10.0),
        ObjectiveConfig(r1_weight=1.0),
    ],
)
def test_sizing_supports_every_objective(objective: ObjectiveConfig) -> None:
    estimate = size_of(replace(SMALL, discriminator_norm="spectral", upsample="resize"), objective)
    assert estimate.flop > 0
    assert estimate.activation_gb > 0


def test_sizing_r1_costs_about_another_step_of_the_discriminator_on_real_clips() -> None:
    plain, more = (size_of(objective=ObjectiveConfig(r1_weight=weight)) for weight in (0.0, 10.0))
    networks = make_networks(SMALL)
    with FlopCounterMode(display=False) as counter:
        networks["discriminator"](torch.rand(1, 3, 16, 32, 32))
    passes = (more.flop - plain.flop) / counter.get_total_flops()
    assert 2 < passes < 6  # a gradient to the pixels, and its own gradients
    assert plain.activation_gb < more.activation_gb < 2.5 * plain.activation_gb


def test_sizing_memory_grows_with_the_share_of_clips_and_falls_with_sharding() -> None:
    single = size_of(ModelConfig(), batch_size=64)
    assert single.worker_gb(1) - single.worker_gb(2) == pytest.approx(32 * single.activation_gb)
    assert size_of(ModelConfig(), batch_size=64, precision="bf16").activation_gb == single.activation_gb / 2
    sharded = replace(single, sharded=True)
    assert sharded.worker_gb(8) < single.worker_gb(8)


def test_sizing_pieces_need_less_memory_and_another_pass_of_the_generator() -> None:
    single, pieced = (size_of(batch_size=16, pieces=n) for n in (1, 4))
    assert single.worker_gb(2) - pieced.worker_gb(2) == pytest.approx(6 * single.activation_gb)
    assert single.flop * 1.05 < pieced.flop < single.flop * 1.3


def test_sizing_checkpoint_is_as_large_as_its_tensors() -> None:
    estimate, networks = size_of(), make_networks(SMALL)
    numels = {n: sum(p.numel() for p in net.parameters()) for n, net in networks.items()}
    assert estimate.checkpoint_gb * 1e9 == 4 * (3 * sum(numels.values()) + numels["generator"])


def test_lines_of_the_paper_model() -> None:
    first, *rest = size_of(ModelConfig(), batch_size=64, clips=1000).lines((1, 4), 200)
    assert first.startswith(
        "parameters: generator 16.2 M, discriminator 11.1 M; 46.0 GFLOP per clip and step; about 1."
    )
    assert " to " in first
    assert rest == ["epoch: 15.6 steps of 64 clips", "checkpoint: 392.6 MB, one every 200 steps"]


def test_check_memory_names_the_remedies() -> None:
    size = size_of(ModelConfig(base_width=64), batch_size=4096)
    check_memory(size, 2, there_gb=1000)
    with pytest.raises(
        InputError,
        match=r"2 workers need about \d+ GB with batch_size=4096, and this machine has 24: raise gradient_acc",
    ):
        check_memory(size, 2, there_gb=24)


def test_step_time_is_estimated_from_the_speed_of_a_matrix_product() -> None:
    assert size_of().step_s(1e9) == pytest.approx(8 * size_of().flop / 0.4e9)
    assert measure_matmul_flops(64) > 1e6
