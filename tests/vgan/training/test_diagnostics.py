"""Diagnostics of training, each computed by hand on synthetic clips."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vgan.models.generator import GeneratorOutput
from vgan.training.diagnostics import diagnose, training_diagnostics


def clips(num: int = 8, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * (torch.rand(num, 3, 4, 6, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1)


def streams(video: Tensor, mask: Tensor | None = None) -> GeneratorOutput:
    return GeneratorOutput(video, video, mask, video[:, :, :1])


def measured(real: Tensor, video: Tensor, mask: Tensor | None = None) -> dict[str, float]:
    return {name: float(value) for name, value in training_diagnostics(real, streams(video, mask)).items()}


def moving(steps: list[float], num: int = 2) -> Tensor:
    """Return distinct clips (num, 3, T, 4, 4) whose pixels all change by these steps from frame to frame."""
    levels = torch.tensor([0.0, *steps]).cumsum(0).reshape(1, 1, -1, 1, 1).expand(num, 3, -1, 4, 4)
    return levels + torch.arange(num).reshape(num, 1, 1, 1, 1) * 0.1


@pytest.mark.parametrize("scale", [1.0, 0.5, 3.0])
def test_diversity_is_the_spread_of_drawn_clips_over_that_of_real_ones(scale: float) -> None:
    assert measured(clips(), clips(scale=scale))["samples/diversity"] == pytest.approx(scale)


def test_diversity_of_clips_that_are_all_the_same_is_zero() -> None:
    assert measured(clips(), clips(1).expand(8, -1, -1, -1, -1))["samples/diversity"] == pytest.approx(0, abs=1e-6)


def test_diversity_counts_neither_texture_nor_movement_within_a_clip() -> None:
    flat = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1, 1).expand(2, 3, 4, 6, 6)
    busy = flat + clips(1)  # the same texture in both
    assert measured(flat, busy)["samples/diversity"] == pytest.approx(1, rel=1e-5)


def test_diversity_of_a_single_clip_is_nan_and_warns_of_nothing() -> None:
    values = measured(clips(1), clips(1))
    assert math.isnan(values["samples/diversity"])
    assert diagnose(values) == {}


def test_motion_is_the_mean_change_of_neighbouring_frames_over_that_of_real_clips() -> None:
    real, video = moving([0.1, -0.3, 0.2]), moving([0.0, 0.0, -0.3])
    assert measured(real, video)["samples/motion"] == pytest.approx((0.3 / 3) / (0.6 / 3))
    assert measured(real, moving([0.0, 0.0, 0.0]))["samples/motion"] == 0


@pytest.mark.parametrize(
    ("level", "entropy"),
    [(0.5, math.log(2)), (0.25, -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))), (0.0, 0.0), (1.0, 0.0)],
)
def test_mask_mean_and_entropy_of_a_flat_mask(level: float, entropy: float) -> None:
    values = measured(clips(), clips(), torch.full((8, 1, 4, 6, 6), level))
    assert values["mask/mean"] == pytest.approx(level)
    assert values["mask/entropy"] == pytest.approx(entropy, abs=2e-5)


def test_mask_entropy_of_a_decided_mask_is_low_whatever_its_mean() -> None:
    half = torch.zeros(8, 1, 4, 6, 6)
    half[..., :3] = 1.0
    values = measured(clips(), clips(), half)
    assert values["mask/mean"] == 0.5
    assert values["mask/entropy"] < 1e-4


def test_motion_share_is_what_the_mask_lets_through_of_the_motion() -> None:
    video = torch.zeros(1, 3, 3, 2, 2)
    video[:, :, 1:, 0, 0] = 0.3  # moves once by 0.3, into frame 1
    video[:, :, 2:, 1, 1] = -0.1  # moves once by 0.1, into frame 2
    mask = torch.zeros(1, 1, 3, 2, 2)
    mask[:, :, 1, 0, 0] = 1.0
    mask[:, :, 2, 1, 1] = 0.5
    mask[:, :, 0] = 0.7  # nothing moves into the first frame
    assert measured(video, video, mask)["mask/motion_share"] == pytest.approx((0.3 * 1.0 + 0.1 * 0.5) / 0.4)


def test_motion_share_of_a_mask_that_knows_nothing_is_its_mean() -> None:
    values = measured(clips(), clips(seed=1), torch.full((8, 1, 4, 6, 6), 0.3))
    assert values["mask/motion_share"] == pytest.approx(values["mask/mean"])


def test_health_of_a_generator_without_a_mask_has_no_figures_of_one() -> None:
    assert set(measured(clips(), clips())) == {"samples/diversity", "samples/motion"}


def test_health_of_what_still_hangs_on_a_graph_and_of_half_precision_is_plain_float32() -> None:
    video = clips(seed=1).requires_grad_() * 1
    mask = torch.full((8, 1, 4, 6, 6), 0.5, requires_grad=True) * 1
    values = training_diagnostics(clips(), streams(video.bfloat16(), mask.bfloat16()))
    assert all(v.dtype == torch.float32 and v.shape == () and not v.requires_grad for v in values.values())


# ---- warnings ----------------------------------------------------------------------------------------------------

HEALTHY = {
    "discriminator/accuracy_real": 0.9,
    "discriminator/accuracy_fake": 0.85,
    "loss/generator": 0.7,
    "mask/mean": 0.3,
    "samples/diversity": 0.8,
}


def test_warnings_of_a_healthy_step_are_none() -> None:
    assert diagnose(HEALTHY) == {}


@pytest.mark.parametrize(
    ("sick", "name"),
    [
        ({"discriminator/accuracy_real": 1.0, "discriminator/accuracy_fake": 0.99}, "discriminator_won"),
        ({"mask/mean": 0.005}, "mask_empty"),
        ({"mask/mean": 0.995}, "mask_full"),
        ({"samples/diversity": 0.05}, "samples_alike"),
    ],
)
def test_warnings_tell_each_illness_by_name_and_in_a_sentence(sick: dict[str, float], name: str) -> None:
    messages = diagnose(HEALTHY | sick)
    assert set(messages) == {name}
    assert len(messages[name].split()) > 5


@pytest.mark.parametrize(
    "well",
    [
        {"discriminator/accuracy_real": 1.0, "discriminator/accuracy_fake": 0.6},  # one of two is not enough
        {"discriminator/accuracy_real": 0.6, "discriminator/accuracy_fake": 1.0},
        {"mask/mean": 0.02},
        {"mask/mean": 0.98},
        {"samples/diversity": 0.11},
        {"samples/diversity": 5.0},
    ],
)
def test_warnings_of_what_is_merely_unusual_are_none(well: dict[str, float]) -> None:
    assert diagnose(HEALTHY | well) == {}


def test_warnings_of_networks_without_discriminator_or_mask_are_none() -> None:
    assert diagnose({}) == {}
    assert diagnose({"loss/reconstruction": 0.1, "samples/diversity": 0.5}) == {}


def test_warnings_can_come_together() -> None:
    sick = {"discriminator/accuracy_real": 1.0, "discriminator/accuracy_fake": 1.0, "mask/mean": 0.0}
    assert set(diagnose(HEALTHY | sick | {"samples/diversity": 0.0})) == {
        "discriminator_won",
        "mask_empty",
        "samples_alike",
    }
