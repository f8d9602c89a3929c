"""Augmentation of D's inputs: the effect of each random number, computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vgan.training.augment import NUM_DRAWS, augment, horizontal_flip

ALL = ["color", "translation", "cutout"]
POLICIES = [*([policy] for policy in ALL), ALL]
DRAWS = ("brightness", "saturation", "contrast", "down", "right", "hole_down", "hole_right")
ALMOST_ONE = 1 - 2**-24  # the largest draw


def clips(num: int = 3, side: int = 16, num_frames: int = 4) -> Tensor:
    shape = (num, 3, num_frames, side, side)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def some_draws(num: int = 3, seed: int = 1) -> Tensor:
    return torch.rand(num, NUM_DRAWS, generator=torch.Generator().manual_seed(seed))


def drawn(num: int = 1, **values: float) -> Tensor:
    """Return draws of 0.5, which change no color, except those passed by name."""
    draws = torch.full((num, NUM_DRAWS), 0.5)
    for name, value in values.items():
        draws[:, DRAWS.index(name)] = value
    return draws


# ---- any policy --------------------------------------------------------------------------------------------------


def test_augment_with_no_policy_returns_its_input() -> None:
    video = clips()
    assert torch.equal(augment(video, some_draws(), []), video)


@pytest.mark.parametrize("policy", POLICIES)
def test_augment_depends_on_its_draws_alone(policy: list[str]) -> None:
    video = clips()
    before = video.clone()
    once = augment(video, some_draws(), policy)
    torch.manual_seed(5)
    assert torch.equal(augment(video, some_draws(), policy), once)
    assert torch.equal(video, before)  # the input is not modified
    assert not torch.equal(augment(video, some_draws(seed=2), policy), once)


@pytest.mark.parametrize("policy", POLICIES)
def test_augment_changes_each_clip_by_its_own_draws_alone(policy: list[str]) -> None:
    video, draws = clips(), some_draws()
    alone = [augment(video[i : i + 1], draws[i : i + 1], policy) for i in range(3)]
    torch.testing.assert_close(augment(video, draws, policy), torch.cat(alone))


@pytest.mark.parametrize("policy", POLICIES)
def test_augment_changes_every_frame_of_a_clip_alike(policy: list[str]) -> None:
    still = clips()[:, :, :1].repeat(1, 1, 4, 1, 1)
    result = augment(still, some_draws(), policy)
    assert not torch.equal(result, still)
    assert torch.equal(result, result[:, :, :1].expand_as(result))


@pytest.mark.parametrize("policy", POLICIES)
def test_augment_lets_exact_gradients_through(policy: list[str]) -> None:
    video = clips(2, side=8, num_frames=2).double().requires_grad_()
    draws = some_draws(2).double()
    assert torch.autograd.gradcheck(lambda v: augment(v, draws, policy), video)


# ---- color -------------------------------------------------------------------------------------------------------


def test_color_at_the_middle_of_its_draws_changes_nothing() -> None:
    torch.testing.assert_close(augment(clips(1), drawn(), ["color"]), clips(1))


@pytest.mark.parametrize(("draw", "shift"), [(0.0, -0.5), (0.75, 0.25), (ALMOST_ONE, 0.5)])
def test_brightness_adds_up_to_a_half(draw: float, shift: float) -> None:
    torch.testing.assert_close(augment(clips(1), drawn(brightness=draw), ["color"]), clips(1) + shift)


@pytest.mark.parametrize(("draw", "factor"), [(0.0, 0.0), (0.25, 0.5), (ALMOST_ONE, 2.0)])
def test_saturation_scales_the_distance_from_gray_up_to_twice(draw: float, factor: float) -> None:
    video, result = clips(1), augment(clips(1), drawn(saturation=draw), ["color"])
    gray = (video[:, 0] + video[:, 1] + video[:, 2]) / 3
    for color in range(3):
        torch.testing.assert_close(result[:, color], gray + factor * (video[:, color] - gray))


@pytest.mark.parametrize(("draw", "factor"), [(0.0, 0.5), (0.75, 1.25), (ALMOST_ONE, 1.5)])
def test_contrast_scales_the_distance_from_the_clips_mean(draw: float, factor: float) -> None:
    video, result = clips(1), augment(clips(1), drawn(contrast=draw), ["color"])
    torch.testing.assert_close(result, video.mean() + factor * (video - video.mean()))


# ---- translation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("down", "right"), [(0.0, 0.0), (0.0, ALMOST_ONE), (ALMOST_ONE, 0.3), (0.5, 0.5)])
def test_translation_moves_by_up_to_an_eighth_with_gray_coming_in(down: float, right: float) -> None:
    video = clips(1)  # 16 pixels: two in each direction, five positions
    result = augment(video, drawn(down=down, right=right), ["translation"])
    dy, dx = (int(draw * 5) - 2 for draw in (down, right))
    for y in range(16):
        for x in range(16):
            inside = 0 <= y + dy < 16 and 0 <= x + dx < 16
            expected = video[..., y + dy, x + dx] if inside else torch.zeros(1, 3, 4)
            assert torch.equal(result[..., y, x], expected)


def test_translation_reaches_every_place_equally_often() -> None:
    marked = torch.zeros(1, 3, 1, 32, 32)
    marked[..., 16, 16] = 1.0
    draws = some_draws(4500)
    result = augment(marked.expand(4500, -1, -1, -1, -1), draws, ["translation"])[:, 0, 0]
    _, rows, columns = result.nonzero(as_tuple=True)
    for places in (rows, columns):
        positions, counts = places.unique(return_counts=True)
        assert positions.tolist() == list(range(12, 21))  # 32 / 8 = 4 in each direction
        assert (counts - 500).abs().max() < 5 * (4500 / 9 * 8 / 9) ** 0.5


# ---- cutout ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("down", "right"), [(0.5, 0.5), (0.0, 0.25), (ALMOST_ONE, 0.7)])
def test_cutout_is_one_gray_rectangle_around_its_draw_and_nothing_else(down: float, right: float) -> None:
    video = clips(1, side=32)
    result = augment(video, drawn(hole_down=down, hole_right=right), ["cutout"])
    cleared = (result[0] == 0).all(dim=(0, 1))  # (H, W)
    rows, columns = cleared.any(1), cleared.any(0)
    assert torch.equal(cleared, rows[:, None] & columns[None, :])
    assert torch.equal(result[..., ~cleared], video[..., ~cleared])
    for line, draw in ((rows, down), (columns, right)):
        places = line.nonzero().flatten()
        assert (places.diff() == 1).all()
        assert line[int(draw * 32)]


def test_cutout_in_the_middle_takes_half_of_each_side() -> None:
    for side in (32, 64):
        cleared = augment(torch.ones(1, 3, 1, side, side), drawn(), ["cutout"])[0, 0, 0] == 0
        for line in (cleared.any(0), cleared.any(1)):
            assert int(line.sum()) == side // 2


# ---- mirror ------------------------------------------------------------------------------------------------------


def test_mirror_turns_exactly_the_clips_it_is_told_to() -> None:
    video = clips(4)
    result = horizontal_flip(video, torch.tensor([True, False, False, True]))
    assert torch.equal(result[1:3], video[1:3])
    for clip in (0, 3):
        for column in range(16):
            assert torch.equal(result[clip, ..., column], video[clip, ..., 15 - column])
