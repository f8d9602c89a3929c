"""Votes with a known truth give it back; the formulas agree with slower ways to the same number."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from simulated import plain_study, sessions_of, simulated_votes

from vgan.study import ratings
from vgan.study.ratings import (
    PUBLISHED,
    Votes,
    agreement,
    missed_gold,
    preference_table,
    refused_real,
    side_bias,
    smallest_seen,
    votes_needed,
    wilson,
    without,
)
from vgan.study.trials import PAIR, Study

TRUTH = {("two_stream", "autoencoder"): 0.82, ("two_stream", "real"): 0.18, ("autoencoder", "real"): 0.03}
NONE = Votes(rater=np.array([], str), trial=np.array([], int), left=np.array([], bool))


@pytest.mark.parametrize("likeness", [0.0, 12.0], ids=["like raters", "unlike raters"])
def test_table_of_simulated_raters_recovers_their_preference_in_95_percent_of_repetitions(
    likeness: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ratings, "DRAWS", 500)
    study = plain_study()
    sessions = sessions_of(study, 60)
    inside: list[bool] = []
    for seed in range(200):
        votes = simulated_votes(sessions, study, TRUTH, seed, likeness=likeness)
        cells = [c for c in preference_table(votes, study, seed=seed) if c.category != "mean"]
        inside += [c.low <= TRUTH[c.pair] <= c.high for c in cells]
    assert np.mean(inside) >= 0.95


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


def test_interval_of_raters_who_repeat_themselves_is_wider_than_of_independent_votes() -> None:
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


def test_one_rater_tells_nothing_of_others_and_no_vote_nothing_at_all() -> None:
    study = plain_study()
    one = preference_table(simulated_votes(sessions_of(study, 1), study, TRUTH, 0), study)
    assert all((c.low, c.high) == wilson(c.share, c.votes) for c in one if c.category != "mean")
    assert all(c.votes == 0 and math.isnan(c.share) for c in preference_table(NONE, study))
    assert math.isnan(side_bias(NONE))


def test_wilson_interval_ends_where_the_normal_test_does() -> None:
    low, high = wilson(0.3, 50)
    for end in (low, high):
        assert abs(0.3 - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 50), rel=1e-5)


def test_filters_find_raters_who_do_not_look_and_keep_the_others() -> None:
    study = plain_study(gold_per_rater=8)
    votes = simulated_votes(sessions_of(study, 40), study, TRUTH, 0, random_raters=5)
    careless = {f"r{k}" for k in range(35, 40)}
    refused = refused_real(votes, study)
    assert {name for name, share in refused.items() if share > 0.3} >= careless
    assert len({name for name, share in refused.items() if share > 0.3}) <= 7
    kept = without(votes, missed_gold(votes, study), 0.2)
    assert set(kept.rater) == {f"r{k}" for k in range(35)}
    assert preference_table(kept, study)[3].share > preference_table(votes, study)[3].share


def test_filter_leaves_a_rater_with_few_real_trials_alone() -> None:
    study = plain_study()
    votes = simulated_votes(sessions_of(study, 3), study, TRUTH, 0, random_raters=3)
    assert refused_real(votes.where(np.arange(len(votes)) % 40 < 4), study) == {}


def test_agreement_equals_a_count_of_all_pairs_of_votes() -> None:
    study = plain_study()
    votes = simulated_votes(sessions_of(study, 30), study, TRUTH, 0)
    shares = []
    for number in study.numbers(PAIR):
        given = votes.left[votes.trial == number]
        pairs = list(combinations(given, 2))
        if pairs:
            shares.append(np.mean([a == b for a, b in pairs]))
    found = agreement(votes, study)
    assert found.trials == len(shares)
    assert found.share == pytest.approx(np.mean(shares))


def test_agreement_is_none_by_chance_and_whole_when_all_say_the_same() -> None:
    study = plain_study()
    sessions = sessions_of(study, 100)
    assert abs(agreement(simulated_votes(sessions, study, dict.fromkeys(TRUTH, 0.5), 0), study).kappa) < 0.05
    assert agreement(simulated_votes(sessions, study, dict.fromkeys(TRUTH, 1.0), 0), study).kappa == pytest.approx(1)
    assert agreement(NONE, study).trials == 0


def rejections(study_votes: int, share: float) -> float:
    """How often a two-sided test at 5 % tells `share` from 50 %, by drawing."""
    found = np.random.default_rng(0).binomial(study_votes, share, 20_000) / study_votes
    return float(np.mean(np.abs(found - 0.5) > 1.959964 * 0.5 / math.sqrt(study_votes)))


@pytest.mark.parametrize("share", [0.55, 0.6, 0.38])
def test_votes_needed_give_a_power_of_80_percent(share: float) -> None:
    assert rejections(votes_needed(share), share) == pytest.approx(0.8, abs=0.02)


def test_votes_needed_grow_with_the_design_effect_and_are_inverse_to_what_is_seen() -> None:
    assert votes_needed(0.55) == 783
    assert votes_needed(0.55, 2.0) == pytest.approx(2 * 783, abs=1)
    assert smallest_seen(783) == pytest.approx(0.55, abs=1e-3)
    assert smallest_seen(2) == 1.0
    with pytest.raises(ValueError, match=r"not 0\.5"):
        votes_needed(0.5)


def test_published_means_are_those_of_their_rows() -> None:
    """Up to rounding, of the cells by half a point and of the mean by another."""
    for cells in PUBLISHED.values():
        assert cells["mean"] == pytest.approx(np.mean([cells[c] for c in ("golf", "beach", "train", "baby")]), abs=1.0)


def test_chose_first_does_not_depend_on_the_side() -> None:
    study: Study = plain_study()
    numbers = np.array(study.numbers(PAIR))
    first_is_left = np.array([study.trials[n].left == 0 for n in numbers])
    votes = Votes(rater=np.full(len(numbers), "r"), trial=numbers, left=first_is_left)
    assert votes.chose_first(study).all()
    assert 0.4 < first_is_left.mean() < 0.6
