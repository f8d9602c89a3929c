"""Trials are balanced and in random order; a session depends on the seed and the rater's number only."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from simulated import plain_study, sessions_of

from vgan.study.trials import (
    GOLD,
    PAIR,
    PRACTICE,
    StudyDesign,
    rater_session,
    scrambled_clip,
    side_by_side,
    static_clip,
)


def test_trials_show_each_method_left_in_half_of_every_cell() -> None:
    study = plain_study(static=True)
    cells: dict[tuple[str, str, str], list[int]] = {}
    for number in study.numbers(PAIR):
        trial = study.trials[number]
        cells.setdefault((trial.first.method, trial.second.method, trial.category), []).append(trial.left)
    assert len(cells) == len(study.pairs) * 3 == 15
    assert all(len(sides) == 20 and sum(sides) == 10 for sides in cells.values())
    for kind in (GOLD, PRACTICE):
        assert np.mean([study.trials[n].left for n in study.numbers(kind)]) == 0.5


def test_clips_repeat_only_after_all_of_a_cell_are_used() -> None:
    study = plain_study(trials_per_cell=40)
    uses = Counter(t.first.source for t in study.trials if t.kind == PAIR and t.second.method == "autoencoder")
    assert set(uses.values()) == {1, 2}
    assert len(uses) == 90


def test_static_and_scrambled_sides_come_from_the_method_itself_and_from_real_clips() -> None:
    study = plain_study(static=True)
    for trial in study.trials:
        origin = trial.second.source.split("/")[0]
        if trial.second.method == "static":
            assert origin == trial.first.method
        if trial.kind in (GOLD, PRACTICE):
            assert (trial.first.method, trial.second.method, origin) == ("real", "scrambled", "real")


def test_trials_are_a_function_of_the_seed() -> None:
    assert plain_study() == plain_study()
    assert plain_study().trials != plain_study(seed=2).trials


def test_sessions_balance_votes_and_do_not_repeat_trials() -> None:
    study = plain_study()
    sessions = sessions_of(study, 50)  # 36 votes each on 180 trials: ten rounds
    assert all(len(set(s)) == len(s) == 40 for s in sessions)
    votes = Counter(number for s in sessions for number in s)
    assert {votes[n] for n in study.numbers(PAIR)} == {10}
    assert all(sum(study.trials[n].kind == GOLD for n in s) == 4 for s in sessions)
    assert not any(study.trials[n].kind == PRACTICE for n in votes)


def test_session_across_two_rounds_is_complete_and_has_no_repeats() -> None:
    study = plain_study(trials_per_rater=55, gold_per_rater=0)
    assert all(len(set(s)) == len(s) == 55 for s in sessions_of(study, 20))


def test_session_longer_than_the_study_is_all_of_it() -> None:
    study = plain_study(trials_per_rater=1000, gold_per_rater=2)
    assert set(study.numbers(PAIR)) < set(rater_session(study, 3))


def test_gold_trials_are_spread_over_sessions() -> None:
    study = plain_study()
    positions = [i for s in sessions_of(study, 50) for i, n in enumerate(s) if study.trials[n].kind == GOLD]
    assert min(positions) < 4
    assert max(positions) > 35
    assert 15 < np.mean(positions) < 24


@pytest.mark.parametrize("change", [{"trials_per_cell": 3}, {"gold_per_rater": 40}, {"seed": -1}])
def test_plan_out_of_bounds_names_the_value(change: dict[str, int]) -> None:
    valid = {"trials_per_cell": 20, "trials_per_rater": 40, "gold_per_rater": 4, "static": False, "seed": 1}
    with pytest.raises(ValueError, match=next(iter(change))):
        StudyDesign(**valid | change)


def test_scrambled_clip_keeps_each_frames_pixels_and_moves_its_blocks() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), np.uint8)
    scrambled = scrambled_clip(clip, seed=5)
    assert scrambled.shape == clip.shape
    for before, after in zip(clip, scrambled, strict=True):
        assert not np.array_equal(before, after)
        blocks = [{a[y : y + 8, x : x + 8].tobytes() for y in (0, 8) for x in (0, 8, 16)} for a in (before, after)]
        assert blocks[0] == blocks[1]


def test_static_clip_and_side_by_side() -> None:
    clip = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 8, 8, 3), np.uint8)
    assert (static_clip(clip) == 2).all()
    joined = side_by_side(clip, static_clip(clip))
    assert joined.shape == (5, 16, 32, 3)
    assert (joined[4, :, :16] == 4).all()
    assert (joined[4, :, 16:] == 2).all()
