"""What votes say: the paper's Table 1 with intervals, raters to leave out, agreement, power."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.stats import t as student

from vgan.study.trials import GOLD, PAIR, REAL, Study

MEAN = "mean"  # over categories, each counting the same, as the paper's last column
LEVEL = 95.0  # percent, of intervals
DRAWS = 2000
SIGNIFICANCE, POWER = 0.05, 0.8  # two-sided test against 50 %; the usual chance to see what is there
Z = NormalDist().inv_cdf

# Table 1 of the paper, percent: (X, Y) of "prefer X over Y", by category. Static frames are in its text.
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
    """Choices, a row each."""

    rater: np.ndarray  # (V,) str, what stands for a rater
    trial: np.ndarray  # (V,) int64, numbers in the study's trials
    left: np.ndarray  # (V,) bool, whether the left one was chosen

    def __len__(self) -> int:
        return len(self.trial)

    def where(self, rows: np.ndarray) -> Votes:
        """Those at a mask (V,) or at indices."""
        return Votes(rater=self.rater[rows], trial=self.trial[rows], left=self.left[rows])

    def chose_first(self, study: Study) -> np.ndarray:
        """(V,) bool, whether the first clip of each trial was chosen, wherever it was shown."""
        left = np.array([trial.left for trial in study.trials], dtype=int)
        return self.left == (left[self.trial] == 0)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """How often raters preferred X over Y. Shares in [0, 1], NaN without votes."""

    pair: tuple[str, str]
    category: str  # or "mean"
    votes: int
    raters: int
    share: float
    low: float
    high: float
    design: float  # how many times wider, in variance, than the same number of independent votes would leave it


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How alike raters judge one trial."""

    trials: int  # that two raters at least have seen
    share: float  # of pairs of votes on one trial, those that agree
    kappa: float  # the same beyond what the shares of left and right would give; Fleiss, 1971


def preference_table(votes: Votes, study: Study, *, seed: int = 0) -> list[Cell]:
    """Every cell that the trials have, and the mean of each pair over its categories.

    Intervals are 95 %, by a bootstrap over raters (https://doi.org/10.1214/aos/1176344552): whole raters are drawn with
    replacement, as one's votes are not independent. They hold for other raters and the same clips. Percentiles are
    widened by Student's t and sqrt(n / (n - 1)) for few raters (https://arxiv.org/abs/1411.5279, section 3.4), and no
    interval is narrower than Wilson's for as many independent votes as these are worth: a cell that all raters agree on
    is not certain, and percentiles alone miss a true 3 % of unlike raters too often.
    """
    pairs, categories = study.pairs, study.categories
    cell_of = np.full(len(study.trials), -1)
    for number in study.numbers(PAIR):
        trial = study.trials[number]
        pair = pairs.index((trial.first.method, trial.second.method))
        cell_of[number] = pair * len(categories) + categories.index(trial.category)
    votes = votes.where(cell_of[votes.trial] >= 0)
    raters, rater = np.unique(votes.rater, return_inverse=True)
    place = (rater, *np.divmod(cell_of[votes.trial], len(categories)))
    seen, chosen = np.zeros((2, len(raters), len(pairs), len(categories)))
    np.add.at(seen, place, 1)
    np.add.at(chosen, place, votes.chose_first(study))
    weights = _weights(len(raters), seed)
    return [cell for k, pair in enumerate(pairs) for cell in _row(pair, categories, seen[:, k], chosen[:, k], weights)]


def _weights(raters: int, seed: int) -> np.ndarray:
    """How often each rater is drawn, (draws, raters)."""
    if not raters:
        return np.zeros((DRAWS, 0))
    return np.random.default_rng(seed).multinomial(raters, np.full(raters, 1 / raters), DRAWS)


def _row(
    pair: tuple[str, str], categories: Sequence[str], seen: np.ndarray, chosen: np.ndarray, weights: np.ndarray
) -> list[Cell]:
    """The cells of one pair, from counts (raters, categories) of votes and of those for its first method."""
    num, yes = seen.sum(axis=0), chosen.sum(axis=0)
    shares = _divide(yes, num)
    drawn = _divide(weights @ chosen, weights @ seen)  # (draws, categories)
    cells = [_cell(pair, name, seen[:, [c]], shares[[c]], drawn[:, [c]], num[[c]]) for c, name in enumerate(categories)]
    return [*cells, _cell(pair, MEAN, seen, shares, drawn, num)]


def _cell(
    pair: tuple[str, str], category: str, seen: np.ndarray, shares: np.ndarray, drawn: np.ndarray, num: np.ndarray
) -> Cell:
    """The mean of one or more categories that have votes."""
    there = num > 0
    raters = int((seen.sum(axis=1) > 0).sum())
    if not there.any():
        nothing = {"share": math.nan, "low": math.nan, "high": math.nan, "design": math.nan}
        return Cell(pair=pair, category=category, votes=0, raters=0, **nothing)
    share = float(shares[there].mean())
    means = drawn[:, there].mean(axis=1)
    means = means[~np.isnan(means)]  # a draw without any rater of a category says nothing
    effective = there.sum() ** 2 / (1 / num[there]).sum()  # of a mean of shares, each with votes of its own
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
    """The middle 95 % of resampled means, its tails moved out for few raters; (1, 0) where one rater tells nothing."""
    if raters < 2 or not len(means):
        return 1.0, 0.0
    tail = (1 - LEVEL / 100) / 2
    wide = NormalDist().cdf(math.sqrt(raters / (raters - 1)) * float(student.ppf(tail, raters - 1)))
    low, high = np.quantile(means, [wide, 1 - wide])
    return float(low), float(high)


def wilson(share: float, num: float) -> tuple[float, float]:
    """Wilson's interval of a share of `num` independent votes (https://doi.org/10.1080/01621459.1927.10502953)."""
    z = Z((1 + LEVEL / 100) / 2)
    centre = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
    return max(0.0, centre - half), min(1.0, centre + half)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b > 0)


# ---- raters ------------------------------------------------------------------------------------------------------


def refused_real(votes: Votes, study: Study, min_votes: int = 5) -> dict[str, float]:
    """How often each rater said that the real video is the less realistic one, of `min_votes` trials with one at least.

    The paper "experimented with removing bad workers that frequently said real videos were not realistic"; how
    frequently it does not say. Gold trials do not count.
    """
    is_real = np.array([t.kind == PAIR and t.second.method == REAL for t in study.trials], dtype=bool)
    return _shares(votes, is_real, votes.chose_first(study), min_votes)


def missed_gold(votes: Votes, study: Study) -> dict[str, float]:
    """How often each rater who saw gold trials chose the scrambled video."""
    is_gold = np.array([t.kind == GOLD for t in study.trials], dtype=bool)
    return _shares(votes, is_gold, ~votes.chose_first(study), 1)


def _shares(votes: Votes, of_trial: np.ndarray, wrong: np.ndarray, min_votes: int) -> dict[str, float]:
    rows = of_trial[votes.trial]
    names, rater = np.unique(votes.rater[rows], return_inverse=True)
    num, bad = np.bincount(rater, minlength=len(names)), np.bincount(rater, wrong[rows], len(names))
    return {str(name): float(b / n) for name, n, b in zip(names, num, bad, strict=True) if n >= min_votes}


def without(votes: Votes, shares: dict[str, float], above: float) -> Votes:
    """The votes of all raters but those whose share lies above a bound."""
    bad = [name for name, share in shares.items() if share > above]
    return votes.where(~np.isin(votes.rater, bad))


# ---- what the numbers are worth ----------------------------------------------------------------------------------


def agreement(votes: Votes, study: Study) -> Agreement:
    """How alike raters judge one trial, over those of pairs of methods; NaN where none was seen twice."""
    votes = votes.where(np.isin(votes.trial, study.numbers(PAIR)))
    num = np.bincount(votes.trial, minlength=len(study.trials))
    left = np.bincount(votes.trial, votes.left, len(study.trials))
    twice = num >= 2
    if not twice.any():
        return Agreement(trials=0, share=math.nan, kappa=math.nan)
    n, k = num[twice], left[twice]
    alike = (k * (k - 1) + (n - k) * (n - k - 1)) / (n * (n - 1))
    share, by_side = float(alike.mean()), float(k.sum() / n.sum())
    by_chance = by_side**2 + (1 - by_side) ** 2
    return Agreement(trials=int(twice.sum()), share=share, kappa=(share - by_chance) / max(1 - by_chance, 1e-12))


def side_bias(votes: Votes) -> float:
    """Share of votes for the left side; 0.5 where sides do not matter. NaN without votes."""
    return float(votes.left.mean()) if len(votes) else math.nan


def votes_needed(share: float, design: float = 1.0) -> int:
    """Votes in a cell to tell a true preference `share` from 50 %, at 5 % and with a power of 80 %.

    Args:
        share: the true preference, not 0.5.
        design: votes that count as one independent one, at least 1.
    """
    if not 0 < share < 1 or share == 0.5:
        raise ValueError(f"share must be in (0, 1) and not 0.5, got {share}")
    spread = Z(1 - SIGNIFICANCE / 2) * 0.5 + Z(POWER) * math.sqrt(share * (1 - share))
    return math.ceil(max(1.0, design) * (spread / (share - 0.5)) ** 2)


def smallest_seen(num: int, design: float = 1.0) -> float:
    """The preference above 50 % that `num` votes in a cell would show; 1 where they are too few for any."""
    low, high = 0.5, 1.0
    if num < 1 or votes_needed(1 - 1e-9, design) > num:
        return 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if votes_needed(middle, design) > num else (low, middle)
    return high


def typical_design(cells: Sequence[Cell]) -> float:
    """The median over cells with votes of how many votes count as one, at least 1."""
    found = [c.design for c in cells if c.category != MEAN and not math.isnan(c.design)]
    return max(1.0, float(np.median(found))) if found else 1.0
