"""Statistics of votes: the paper's Table 1 with intervals, rater exclusion, agreement and statistical power."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.stats import t as student

from vgan.bootstrap import draw_counts, percentile_interval
from vgan.study.trials import GOLD, PAIR, REAL, Study

MEAN = "mean"  # unweighted mean over categories, as in the paper's last column
LEVEL = 95.0  # confidence level of intervals, percent
DRAWS = 2000  # bootstrap samples
SIGNIFICANCE, POWER = 0.05, 0.8  # two-sided test against 50 %; conventional power
Z = NormalDist().inv_cdf

# Table 1 of the paper, percent: (X, Y) of "prefer X over Y", by category. Static frames are only in its text.
PUBLISHED: dict[tuple[str, str], dict[str, float]] = {
    ("two_stream", "autoencoder"): {"golf": 88, "beach": 83, "train": 87, "baby": 71, MEAN: 82},
    ("one_stream", "autoencoder"): {"golf": 85, "beach": 88, "train": 85, "baby": 73, MEAN: 82},
    ("two_stream", "one_stream"): {"golf": 55, "beach": 58, "train": 47, "baby": 52, MEAN: 53},
    ("two_stream", "real"): {"golf": 21, "beach": 23, "train": 23, "baby": 6, MEAN: 18},
    ("one_stream", "real"): {"golf": 17, "beach": 21, "train": 19, "baby": 8, MEAN: 16},
    ("autoencoder", "real"): {"golf": 4, "beach": 2, "train": 4, "baby": 2, MEAN: 3},
}


@dataclass(frozen=True, kw_only=True)
class Votes:
    """Votes as parallel arrays, one row per vote."""

    rater: np.ndarray  # (V,) str, rater id
    trial: np.ndarray  # (V,) int64, index in the study's trials
    left: np.ndarray  # (V,) bool, true if the left clip was chosen

    def __len__(self) -> int:
        return len(self.trial)

    def where(self, rows: np.ndarray) -> Votes:
        """Select votes by a mask (V,) or by indices."""
        return Votes(rater=self.rater[rows], trial=self.trial[rows], left=self.left[rows])

    def chose_first(self, study: Study) -> np.ndarray:
        """Return (V,) bool, true if the first clip of the trial was chosen, on either side."""
        left_clip = np.array([trial.left for trial in study.trials], dtype=int)
        return self.left == (left_clip[self.trial] == 0)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Preference for X over Y in one category. Shares are in [0, 1], NaN without votes."""

    pair: tuple[str, str]
    category: str  # or "mean"
    votes: int  # number of votes
    raters: int  # number of raters
    share: float  # share of votes for X
    low: float
    high: float
    design: float  # design effect: ratio of variance to that of as many independent votes


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Inter-rater agreement."""

    trials: int  # number of trials with votes of at least two raters
    share: float  # share of pairs of votes on one trial that agree
    kappa: float  # chance-corrected agreement, chance given by the shares of left and right; Fleiss, 1971


def preference_table(votes: Votes, study: Study, *, seed: int = 0) -> list[Cell]:
    """Return the cells of all pairs of methods and categories, and the mean of each pair over its categories.

    Intervals are 95 %, by a bootstrap over raters (https://doi.org/10.1214/aos/1176344552): raters are drawn with
    replacement together with all their votes, as the votes of one rater are not independent. They generalize to other
    raters and the same clips. Percentiles are widened by Student's t and sqrt(n / (n - 1)) for few raters
    (https://arxiv.org/abs/1411.5279, section 3.4). No interval is narrower than Wilson's for the effective number of
    independent votes: a cell on which all raters agree is not certain, and percentiles alone miss a true share of 3 %
    too often if raters differ.

    Args:
        votes: votes on trials of `study`; votes on other than pair trials are ignored.
        study: the trials.
        seed: seed of the bootstrap.
    """
    pairs, categories = study.pairs, study.categories
    cell_of = np.full(len(study.trials), -1)
    for number in study.numbers(PAIR):
        trial = study.trials[number]
        pair = pairs.index((trial.first.method, trial.second.method))
        cell_of[number] = pair * len(categories) + categories.index(trial.category)
    votes = votes.where(cell_of[votes.trial] >= 0)
    raters, rater = np.unique(votes.rater, return_inverse=True)
    index = (rater, *np.divmod(cell_of[votes.trial], len(categories)))
    counts, chosen = np.zeros((2, len(raters), len(pairs), len(categories)))
    np.add.at(counts, index, 1)
    np.add.at(chosen, index, votes.chose_first(study))
    weights = draw_counts(len(raters), DRAWS, np.random.default_rng(seed))
    return [
        cell for k, pair in enumerate(pairs) for cell in _row(pair, categories, counts[:, k], chosen[:, k], weights)
    ]


def _row(
    pair: tuple[str, str], categories: Sequence[str], counts: np.ndarray, chosen: np.ndarray, weights: np.ndarray
) -> list[Cell]:
    """Return the cells of one pair.

    Args:
        pair: the methods (X, Y).
        categories: names of the categories.
        counts: number of votes (raters, categories).
        chosen: number of votes for X (raters, categories).
        weights: bootstrap weights (draws, raters).
    """
    num, num_chosen = counts.sum(axis=0), chosen.sum(axis=0)
    shares = _divide(num_chosen, num)
    resampled = _divide(weights @ chosen, weights @ counts)  # (draws, categories)
    cells = [
        _cell(pair, name, counts[:, [c]], shares[[c]], resampled[:, [c]], num[[c]]) for c, name in enumerate(categories)
    ]
    return [*cells, _cell(pair, MEAN, counts, shares, resampled, num)]


def _cell(
    pair: tuple[str, str], category: str, counts: np.ndarray, shares: np.ndarray, resampled: np.ndarray, num: np.ndarray
) -> Cell:
    """Return the cell of one category, or of the mean over several categories, ignoring those without votes."""
    has_votes = num > 0
    raters = int((counts.sum(axis=1) > 0).sum())
    if not has_votes.any():
        undefined = {"share": math.nan, "low": math.nan, "high": math.nan, "design": math.nan}
        return Cell(pair=pair, category=category, votes=0, raters=0, **undefined)
    share = float(shares[has_votes].mean())
    means = resampled[:, has_votes].mean(axis=1)
    means = means[~np.isnan(means)]  # undefined if a draw has no vote in one of the categories
    effective = has_votes.sum() ** 2 / (1 / num[has_votes]).sum()  # votes, for an unweighted mean of shares
    low, high = _widened(means, raters)
    independent = max(share * (1 - share), 0.25 / effective) / effective
    design = float(means.var() / independent) if len(means) else math.nan
    wilson_low, wilson_high = wilson(share, effective / max(1.0, design))
    return Cell(
        pair=pair,
        category=category,
        votes=int(num.sum()),
        raters=raters,
        share=share,
        low=min(low, wilson_low),
        high=max(high, wilson_high),
        design=design,
    )


def _widened(means: np.ndarray, raters: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of resampled means, widened for few raters; (1, 0) below two raters."""
    if raters < 2 or not len(means):
        return 1.0, 0.0
    tail = (1 - LEVEL / 100) / 2
    widened_tail = NormalDist().cdf(math.sqrt(raters / (raters - 1)) * float(student.ppf(tail, raters - 1)))
    return percentile_interval(means, widened_tail)


def wilson(share: float, num: float) -> tuple[float, float]:
    """Return Wilson's interval of a share of `num` independent votes (https://doi.org/10.1080/01621459.1927.10502953)."""
    z = Z((1 + LEVEL / 100) / 2)
    center = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
    return max(0.0, center - half), min(1.0, center + half)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Divide elementwise, NaN where `b` is not positive."""
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b > 0)


# ---- raters ------------------------------------------------------------------------------------------------------


def real_rejection_rate(votes: Votes, study: Study, min_votes: int = 5) -> dict[str, float]:
    """Return each rater's share of votes against the real video, for raters with at least `min_votes` such trials.

    The paper "experimented with removing bad workers that frequently said real videos were not realistic"; it does not
    state a threshold. Gold trials are not counted.
    """
    is_real = np.array([t.kind == PAIR and t.second.method == REAL for t in study.trials], dtype=bool)
    return _shares(votes, is_real, votes.chose_first(study), min_votes)


def gold_failure_rate(votes: Votes, study: Study) -> dict[str, float]:
    """Return the share of gold trials in which a rater chose the scrambled video, for raters with gold trials."""
    is_gold = np.array([t.kind == GOLD for t in study.trials], dtype=bool)
    return _shares(votes, is_gold, ~votes.chose_first(study), 1)


def _shares(votes: Votes, is_counted: np.ndarray, wrong: np.ndarray, min_votes: int) -> dict[str, float]:
    """Return each rater's share of wrong votes.

    Args:
        votes: V votes.
        is_counted: mask (trials,) bool of the trials that count.
        wrong: (V,) bool.
        min_votes: minimum number of counted votes; raters with fewer are omitted.
    """
    rows = is_counted[votes.trial]
    names, rater = np.unique(votes.rater[rows], return_inverse=True)
    num, bad = np.bincount(rater, minlength=len(names)), np.bincount(rater, wrong[rows], len(names))
    return {str(name): float(b / n) for name, n, b in zip(names, num, bad, strict=True) if n >= min_votes}


def drop_raters(votes: Votes, shares: dict[str, float], above: float) -> Votes:
    """Remove the votes of raters whose share is greater than `above`."""
    excluded = [name for name, share in shares.items() if share > above]
    return votes.where(~np.isin(votes.rater, excluded))


# ---- reliability of the numbers ----------------------------------------------------------------------------------


def agreement(votes: Votes, study: Study) -> Agreement:
    """Compute inter-rater agreement over pair trials; NaN if no trial has two votes."""
    votes = votes.where(np.isin(votes.trial, study.numbers(PAIR)))
    num = np.bincount(votes.trial, minlength=len(study.trials))
    num_left = np.bincount(votes.trial, votes.left, len(study.trials))
    multiple = num >= 2
    if not multiple.any():
        return Agreement(trials=0, share=math.nan, kappa=math.nan)
    n, k = num[multiple], num_left[multiple]
    agreeing = (k * (k - 1) + (n - k) * (n - k - 1)) / (n * (n - 1))
    share, by_side = float(agreeing.mean()), float(k.sum() / n.sum())
    by_chance = by_side**2 + (1 - by_side) ** 2
    return Agreement(trials=int(multiple.sum()), share=share, kappa=(share - by_chance) / max(1 - by_chance, 1e-12))


def side_bias(votes: Votes) -> float:
    """Return the share of votes for the left side: 0.5 without bias, NaN without votes."""
    return float(votes.left.mean()) if len(votes) else math.nan


def required_votes(share: float, design: float = 1.0) -> int:
    """Return the number of votes per cell needed to distinguish a preference from 50 % (5 % level, 80 % power).

    Args:
        share: true preference in (0, 1), not 0.5.
        design: design effect: votes per independent vote; values below 1 count as 1.

    Raises:
        ValueError: `share` is out of range.
    """
    if not 0 < share < 1 or share == 0.5:
        raise ValueError(f"share must be in (0, 1) and not 0.5, got {share}")
    spread = Z(1 - SIGNIFICANCE / 2) * 0.5 + Z(POWER) * math.sqrt(share * (1 - share))
    return math.ceil(max(1.0, design) * (spread / (share - 0.5)) ** 2)


def minimum_detectable_preference(num: int, design: float = 1.0) -> float:
    """Return the smallest preference above 50 % detectable with `num` votes in a cell; 1 if there is none."""
    low, high = 0.5, 1.0
    if num < 1 or required_votes(1 - 1e-9, design) > num:
        return 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if required_votes(middle, design) > num else (low, middle)
    return high


def median_design_effect(cells: Sequence[Cell]) -> float:
    """Return the median design effect of the cells with votes, without means over categories; at least 1."""
    designs = [c.design for c in cells if c.category != MEAN and not math.isnan(c.design)]
    return max(1.0, float(np.median(designs))) if designs else 1.0
