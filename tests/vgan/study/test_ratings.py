"""Statistics recover the known preferences of simulated raters; formulas agree with brute-force computations."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from simulated import plain_study, sessions_of, simulated_votes

from vgan.study.ratings import (
    PUBLISHED,
    Votes,
    agreement,
    drop_raters,
    gold_failure_rate,
    minimum_detectable_preference,
    preference_table,
    real_rejection_rate,
    required_votes,
    side_bias,
    wilson,
)
from vgan.study.trials import PAIR, Study

TRUTH = {("two_stream", "autoencoder"): 0.82, ("two_stream", "real"): 0.18, ("autoencoder", "real"): 0.03}
NO_VOTES = Votes(rater=np.array([], str), trial=np.array([], int), left=np.array([], bool))


@pytest.mark.parametrize("likeness", [0.0, 12.0], ids=["like raters", "unlike raters"])
def test_table_of_simulated_raters_recovers_their_preference_in_95_percent_of_repetitions(
    likeness: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vgan.study.ratings.DRAWS", 500)
    study = plain_study()
    sessions = sessions_of(study, 60)
    covered: list[bool] = []
    for seed in range(200):
        votes = simulated_votes(sessions, study, TRUTH, seed, likeness=likeness)
        cells = [c for c in preference_table(votes, study, seed=seed) if c.category != "mean"]
        covered += [c.low <= TRUTH[c.pair] <= c.high for c in cells]
    assert np.mean(covered) >= 0.95


def test_table_counts_votes_and_raters_of_each_cell() -> None:
    study = plain_study()
    cells = preference_table(simulated_votes(sessions_of(study, 10), study, TRUTH, 0), study)
    assert [c.category for c in cells[:4]] == ["golf", "beach", "baby", "mean"]
    assert [c.pair for c in cells[::4]] == study.pairs
    for k in range(0, len(cells), 4):
        *parts, mean = cells[k : k + 4]
        assert mean.votes == sum(c.votes for c in parts) == 120
        assert mean.share == pytest.approx(np.mean([c.share for c in parts]))
        assert all(c.low <= c.share <= c.high for c in (*parts, mean))


def test_interval_is_wider_if_raters_differ() -> None:
    study = plain_study()
    sessions = sessions_of(study, 30)
    alike = preference_table(simulated_votes(sessions, study, TRUTH, 0), study)
    unlike = preference_table(simulated_votes(sessions, study, TRUTH, 0, likeness=1.0), study)
    assert unlike[3].design > 2 > alike[3].design
    assert unlike[3].high - unlike[3].low > 1.4 * (alike[3].high - alike[3].low)


def test_cell_that_all_raters_agree_on_is_not_certain() -> None:
    study = plain_study()
    votes = simulated_votes(sessions_of(study, 5), study, dict.fromkeys(TRUTH, 1.0), 0)
    assert all(c.share == 1 and 0.7 < c.low < 0.99 for c in preference_table(votes, study))


def test_one_rater_gives_wilson_intervals_and_no_votes_give_nan() -> None:
    study = plain_study()
    cells = preference_table(simulated_votes(sessions_of(study, 1), study, TRUTH, 0), study)
    assert all((c.low, c.high) == wilson(c.share, c.votes) for c in cells if c.category != "mean")
    assert all(c.votes == 0 and math.isnan(c.share) for c in preference_table(NO_VOTES, study))
    assert math.isnan(side_bias(NO_VOTES))


def test_wilson_interval_ends_where_the_normal_test_does() -> None:
    low, high = wilson(0.3, 50)
    for end in (low, high):
        assert abs(0.3 - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 50), rel=1e-5)


def test_filters_exclude_careless_raters_only() -> None:
    study = plain_study(gold_per_rater=8)
    votes = simulated_votes(sessions_of(study, 40), study, TRUTH, 0, random_raters=5)
    careless = {f"r{k}" for k in range(35, 40)}
    refused = real_rejection_rate(votes, study)
    assert {name for name, share in refused.items() if share > 0.3} >= careless
    assert len({name for name, share in refused.items() if share > 0.3}) <= 7
    remaining = drop_raters(votes, gold_failure_rate(votes, study), 0.2)
    assert set(remaining.rater) == {f"r{k}" for k in range(35)}
    assert preference_table(remaining, study)[3].share > preference_table(votes, study)[3].share


def test_filter_ignores_raters_with_few_real_trials() -> None:
    study = plain_study()
    votes = simulated_votes(sessions_of(study, 3), study, TRUTH, 0, random_raters=3)
    assert real_rejection_rate(votes.where(np.arange(len(votes)) % 40 < 4), study) == {}


def test_agreement_equals_a_count_of_all_pairs_of_votes() -> None:
    study = plain_study()
    votes = simulated_votes(sessions_of(study, 30), study, TRUTH, 0)
    shares = []
    for number in study.numbers(PAIR):
        choices = votes.left[votes.trial == number]
        pairs = list(combinations(choices, 2))
        if pairs:
            shares.append(np.mean([a == b for a, b in pairs]))
    result = agreement(votes, study)
    assert result.trials == len(shares)
    assert result.share == pytest.approx(np.mean(shares))


def test_kappa_is_zero_by_chance_and_one_for_equal_votes() -> None:
    study = plain_study()
    sessions = sessions_of(study, 100)
    assert abs(agreement(simulated_votes(sessions, study, dict.fromkeys(TRUTH, 0.5), 0), study).kappa) < 0.05
    assert agreement(simulated_votes(sessions, study, dict.fromkeys(TRUTH, 1.0), 0), study).kappa == pytest.approx(1)
    assert agreement(NO_VOTES, study).trials == 0


def rejections(study_votes: int, share: float) -> float:
    """Estimate by simulation the power of a two-sided test at 5 % of `share` against 50 %."""
    shares = np.random.default_rng(0).binomial(study_votes, share, 20_000) / study_votes
    return float(np.mean(np.abs(shares - 0.5) > 1.959964 * 0.5 / math.sqrt(study_votes)))


@pytest.mark.parametrize("share", [0.55, 0.6, 0.38])
def test_votes_needed_give_a_power_of_80_percent(share: float) -> None:
    assert rejections(required_votes(share), share) == pytest.approx(0.8, abs=0.02)


def test_votes_needed_grow_with_the_design_effect_and_invert_smallest_seen() -> None:
    assert required_votes(0.55) == 783
    assert required_votes(0.55, 2.0) == pytest.approx(2 * 783, abs=1)
    assert minimum_detectable_preference(783) == pytest.approx(0.55, abs=1e-3)
    assert minimum_detectable_preference(2) == 1.0
    with pytest.raises(ValueError, match=r"not 0\.5"):
        required_votes(0.5)


def test_published_means_are_those_of_their_rows() -> None:
    """Compare means up to rounding: half a point in the cells and half a point in the mean."""
    for cells in PUBLISHED.values():
        assert cells["mean"] == pytest.approx(np.mean([cells[c] for c in ("golf", "beach", "train", "baby")]), abs=1.0)


def test_chose_first_does_not_depend_on_the_side() -> None:
    study: Study = plain_study()
    numbers = np.array(study.numbers(PAIR))
    first_is_left = np.array([study.trials[n].left == 0 for n in numbers])
    votes = Votes(rater=np.full(len(numbers), "r"), trial=numbers, left=first_is_left)
    assert votes.chose_first(study).all()
    assert 0.4 < first_is_left.mean() < 0.6
