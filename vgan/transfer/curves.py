"""A sweep's results as points with intervals: accuracy against label fraction, and the gain over random weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from vgan.transfer.scores import interval, resampled_means

BASELINE = "random"  # the initialization every gain is taken over
EVERY = 0.0  # in the place of a fraction: the mean over all fractions


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run of a sweep."""

    init: str
    fraction: float  # of the labels, 0..1
    seed: int
    split: int
    correct: np.ndarray  # (V,) bool, of the split's test videos, in the lists' order

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


@dataclass(frozen=True, kw_only=True)
class Point:
    """One init at one label fraction: the mean over seeds (and splits), and its 95 % interval."""

    init: str
    fraction: float
    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]  # each seed's own value


def accuracies(results: Iterable[Result]) -> list[Point]:
    """Accuracy of every init at every fraction, baseline last. Of several splits their mean, as in figure 4a.

    Intervals are over seeds and test videos (`vgan.transfer.scores.resampled_means`).
    """
    points = []
    for (init, fraction), runs in _grouped(results):
        low, high = interval(_means(runs))
        by_seed = _by_seed(runs)
        values = tuple(by_seed[seed] for seed in sorted(by_seed))
        points.append(
            Point(init=init, fraction=fraction, mean=float(np.mean(values)), low=low, high=high, seeds=values)
        )
    return points


def gains(results: Sequence[Result]) -> list[Point]:
    """Accuracy over the baseline's at the same fraction (figure 4c), where there is one; seeds are paired."""
    grouped = dict(_grouped(results))
    points = []
    for (init, fraction), runs in grouped.items():
        base = grouped.get((BASELINE, fraction))
        if init == BASELINE or not base:
            continue
        ours, theirs = _by_seed(runs), _by_seed(base)
        values = tuple(ours[seed] / theirs[seed] for seed in sorted(ours) if theirs.get(seed, 0) > 0)
        if not values:
            continue
        below = _means(base)
        low, high = interval((_means(runs) / np.where(below > 0, below, np.nan))[below > 0])
        ratio = float(np.mean(list(ours.values())) / np.mean(list(theirs.values())))
        points.append(Point(init=init, fraction=fraction, mean=ratio, low=low, high=high, seeds=values))
    return points


def differences(results: Sequence[Result]) -> list[Point]:
    """Accuracy less the baseline's, of the seeds and splits that both have: at every fraction, and at `EVERY` where
    these are the same at all fractions.

    Two inits are tested on the same videos: the interval of their difference is the one to read, not whether the
    intervals of their accuracies overlap.
    """
    runs = {(r.init, r.fraction, r.seed, r.split): r for r in results}
    paired = defaultdict[tuple[str, float], list[tuple[Result, Result]]](list)
    for (init, fraction, seed, split), run in sorted(runs.items()):
        if init != BASELINE and (base := runs.get((BASELINE, fraction, seed, split))):
            paired[init, fraction].append((run, base))
    points = []
    for init in dict.fromkeys(init for init, _ in paired):
        own = {f: pairs for (name, f), pairs in paired.items() if name == init}
        drawn = {f: _means([a for a, _ in pairs]) - _means([b for _, b in pairs]) for f, pairs in own.items()}
        seeds = {f: _less(_by_seed([a for a, _ in pairs]), _by_seed([b for _, b in pairs])) for f, pairs in own.items()}
        if len(own) > 1 and len({tuple((a.seed, a.split) for a, _ in pairs) for pairs in own.values()}) == 1:
            drawn[EVERY] = np.mean(list(drawn.values()), axis=0)
            seeds[EVERY] = tuple(np.mean(list(seeds.values()), axis=0).tolist())
        for fraction, values in seeds.items():
            low, high = interval(drawn[fraction])
            points.append(
                Point(init=init, fraction=fraction, mean=float(np.mean(values)), low=low, high=high, seeds=values)
            )
    return points


def _less(ours: dict[int, float], theirs: dict[int, float]) -> tuple[float, ...]:
    return tuple(ours[seed] - theirs[seed] for seed in sorted(ours))


def _grouped(results: Iterable[Result]) -> list[tuple[tuple[str, float], list[Result]]]:
    """Runs by (init, fraction), fractions ascending, the baseline last."""

    def key(run: Result) -> tuple[bool, str, float]:
        return run.init == BASELINE, run.init, run.fraction

    return [((init, fraction), list(runs)) for (_, init, fraction), runs in groupby(sorted(results, key=key), key)]


def _by_seed(runs: Sequence[Result]) -> dict[int, float]:
    """Accuracy of each seed, the mean over splits."""
    found: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        found[run.seed].append(run.accuracy)
    return {seed: float(np.mean(values)) for seed, values in found.items()}


def _means(runs: Sequence[Result]) -> np.ndarray:
    """Resampled accuracies, the mean over splits."""
    by_split: dict[int, list[Result]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.seed):
        by_split[run.split].append(run)
    resampled = [
        resampled_means(np.stack([run.correct for run in own]), seed=split) for split, own in sorted(by_split.items())
    ]
    return np.mean(resampled, axis=0)
