"""Each bound rejects the clips that violate it, with its reason, and can be disabled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vgan.records import ClipScores
from vgan.video.config import FILTER_PRESETS, FILTER_REASONS, FilterConfig
from vgan.video.quality_filters import bound_utilization, first_violation, quality, violation_mask

GOOD = {"residual_px": 0.3, "inlier_ratio": 0.9, "num_matches": 80, "photometric": 5.0, "motion": 3.0}
BROKEN = {
    "residual_motion": {"residual_motion_px": 9.0},
    "low_agreement": {"agreement": 0.01},
    "distortion": {"distortion_px": 99.0},
    "low_inlier_ratio": {"inlier_ratio": 0.01},
    "large_residual": {"residual_px": 99.0},
    "scale_jump": {"scale_step": 9.0},
    "photometric": {"photometric": 200.0},
    "dissolve": {"dissolve": 9.0},
    "large_zoom": {"zoom": 99.0},
    "drift": {"drift_px": 99.0},
    "too_much_fill": {"filled_fraction": 0.99},
    "still": {"motion": 0.0},
    "restless": {"motion": 250.0},
}


def test_gates_good_clip_passes():
    assert first_violation(ClipScores(**GOOD), FilterConfig()) is None
    assert bound_utilization(ClipScores(**GOOD), FilterConfig()) < 1


def test_gates_every_reason_on_a_score_is_tested():
    assert set(BROKEN) | {"unregistered", "source_cap", "near_duplicate"} == set(FILTER_REASONS)


def test_filters_window_whose_registration_failed_is_rejected_unless_kept():
    failed = ClipScores(motion=3.0, registration="failed", stabilized=False)
    assert first_violation(failed, FilterConfig())[0] == "unregistered"
    assert first_violation(failed, FilterConfig(keep_unregistered=True)) is None
    assert first_violation(replace(failed, registration="static"), FilterConfig()) is None


def test_filters_preset_paper_is_looser_than_strict_in_every_bound_it_names():
    strict = FilterConfig()
    for name, value in FILTER_PRESETS["paper"].items():
        bound = getattr(strict, name)
        assert value < bound if name.startswith("min_") else value > bound, name


def test_filters_clip_that_still_moves_is_kept_if_most_of_the_motion_was_removed():
    moving = ClipScores(**GOOD, residual_motion_px=0.8, source_motion_px=2.5)
    assert first_violation(moving, FilterConfig()) is None
    assert first_violation(replace(moving, source_motion_px=1.5), FilterConfig())[0] == "residual_motion"
    assert first_violation(moving, FilterConfig(max_residual_motion_share=0.0))[0] == "residual_motion"


@pytest.mark.parametrize("reason", BROKEN)
def test_gates_violated_bound_returns_its_reason_and_value(reason):
    evidence = ClipScores(**GOOD | BROKEN[reason])
    violation = first_violation(evidence, FilterConfig())
    assert violation is not None
    assert violation[0] == reason
    (value,) = BROKEN[reason].values()
    assert f"{value:.3g}" in violation[1]
    assert bound_utilization(evidence, FilterConfig()) > 1


@pytest.mark.parametrize("reason", BROKEN)
def test_gates_disabled_bound_accepts_the_clip(reason):
    assert first_violation(ClipScores(**GOOD | BROKEN[reason]), FilterConfig(disabled=[reason])) is None


def test_gates_clip_that_was_not_registered_is_filtered_by_motion_only():
    assert first_violation(ClipScores(motion=3.0, stabilized=False), FilterConfig()) is None
    assert first_violation(ClipScores(motion=0.0, stabilized=False), FilterConfig())[0] == "still"


def test_strain_increases_toward_the_bound():
    bound = FilterConfig().max_residual_px
    strains = [
        bound_utilization(ClipScores(**GOOD | {"residual_px": share * bound}), FilterConfig())
        for share in (0.5, 0.8, 1.0)
    ]
    assert strains == sorted(strains)
    assert strains[-1] == pytest.approx(1.0)


def test_gates_unknown_reason_is_refused():
    with pytest.raises(ValueError, match=r"filters\.disabled.*too_blue"):
        FilterConfig(disabled=["too_blue"])


@pytest.mark.parametrize("score", ["residual_px", "inlier_ratio", "drift_px", "dissolve", "motion"])
def test_gates_nan_score_is_rejected(score):
    assert first_violation(ClipScores(**GOOD | {score: float("nan")}), FilterConfig()) is not None


def test_gates_of_many_clips_equal_those_of_single_clips():
    clips = [ClipScores(**GOOD | scores) for scores in ({}, *BROKEN.values(), {"motion": float("nan")})]
    columns = {name: np.array([vars(clip)[name] for clip in clips]) for name in vars(clips[0])}
    for config in (FilterConfig(), FilterConfig(disabled=["still", "photometric"])):
        one_by_one = [first_violation(clip, config) is not None for clip in clips]
        assert violation_mask(ClipScores(**columns), config).tolist() == one_by_one
        assert 0 < sum(one_by_one) < len(clips)


def test_quality_of_arrays_is_half_at_the_bound_and_falls_with_each_score():
    clips = [
        ClipScores(**GOOD | scores)
        for scores in ({}, {"residual_px": FilterConfig().max_residual_px}, *BROKEN.values())
    ]
    columns = ClipScores(**{name: np.array([vars(clip)[name] for clip in clips]) for name in vars(clips[0])})
    values = quality(columns)
    assert values[0] > 0.5
    assert values[1] == pytest.approx(0.5)
    assert (values[2:] < 0.5).all()
    assert [value < 0.5 - 1e-9 for value in values] == list(violation_mask(columns, FilterConfig()))
