"""Points with intervals from a sweep's results: accuracy by label fraction, and gain over random initialization."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from vgan.transfer.scores import interval, resampled_means

BASELINE = "random"  # the initialization that gains and differences are relative to
EVERY = 0.0  # value of `Point.fraction` for the mean over all fractions


@dataclass(frozen=True, kw_only=True)
class Result:
    """Result of one run of a sweep."""

    init: str
    fraction: float  # of the training labels, in (0, 1]
    seed: int
    split: int
    correct: np.ndarray  # (V,) bool per test video of the split, in the order of the official list

    @property
    def accuracy(self) -> float:
        """Share of test videos classified correctly, in [0, 1]."""
        return float(self.correct.mean())


@dataclass(frozen=True, kw_only=True)
class Point:
    """Mean over seeds and splits, with its 95 % interval, of one initialization at one label fraction."""

    init: str
    fraction: float
    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]  # value of each seed, the mean over its splits


def accuracies(results: Iterable[Result]) -> list[Point]:
    """Return the accuracy of every initialization at every fraction, baseline last.

    Several splits are averaged, as in paper figure 4a. Intervals are over seeds and test videos
    (`vgan.transfer.scores.resampled_means`).
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


def relative_gains(results: Sequence[Result]) -> list[Point]:
    """Return ratios of accuracy to the baseline's at the same fraction (paper figure 4c), with seeds paired.

    Initializations without a baseline at the same fraction are omitted.
    """
    grouped = dict(_grouped(results))
    points = []
    for (init, fraction), runs in grouped.items():
        baseline_runs = grouped.get((BASELINE, fraction))
        if init == BASELINE or not baseline_runs:
            continue
        by_seed, baseline_by_seed = _by_seed(runs), _by_seed(baseline_runs)
        values = tuple(
            by_seed[seed] / baseline_by_seed[seed] for seed in sorted(by_seed) if baseline_by_seed.get(seed, 0) > 0
        )
        if not values:
            continue
        denominators = _means(baseline_runs)
        ratios = _means(runs) / np.where(denominators > 0, denominators, np.nan)
        low, high = interval(ratios[denominators > 0])
        ratio = float(np.mean(list(by_seed.values())) / np.mean(list(baseline_by_seed.values())))
        points.append(Point(init=init, fraction=fraction, mean=ratio, low=low, high=high, seeds=values))
    return points


def paired_differences(results: Sequence[Result]) -> list[Point]:
    """Return differences of accuracy to the baseline's at every fraction, over the seeds and splits common to both.

    If all fractions have the same seeds and splits, a point at `EVERY` gives the mean over fractions. Initializations
    are tested on the same videos: compare two by the interval of their difference, not by overlap of the intervals of
    their accuracies.
    """
    runs = {(r.init, r.fraction, r.seed, r.split): r for r in results}
    paired = defaultdict[tuple[str, float], list[tuple[Result, Result]]](list)
    for (init, fraction, seed, split), run in sorted(runs.items()):
        if init != BASELINE and (base := runs.get((BASELINE, fraction, seed, split))):
            paired[init, fraction].append((run, base))
    points = []
    for init in dict.fromkeys(init for init, _ in paired):
        by_fraction = {f: pairs for (name, f), pairs in paired.items() if name == init}
        resampled = {
            f: _means([a for a, _ in pairs]) - _means([b for _, b in pairs]) for f, pairs in by_fraction.items()
        }
        seeds = {
            f: _subtract(_by_seed([a for a, _ in pairs]), _by_seed([b for _, b in pairs]))
            for f, pairs in by_fraction.items()
        }
        same_runs = len({tuple((a.seed, a.split) for a, _ in pairs) for pairs in by_fraction.values()}) == 1
        if len(by_fraction) > 1 and same_runs:
            resampled[EVERY] = np.mean(list(resampled.values()), axis=0)
            seeds[EVERY] = tuple(np.mean(list(seeds.values()), axis=0).tolist())
        for fraction, values in seeds.items():
            low, high = interval(resampled[fraction])
            points.append(
                Point(init=init, fraction=fraction, mean=float(np.mean(values)), low=low, high=high, seeds=values)
            )
    return points


def _subtract(values: dict[int, float], baseline: dict[int, float]) -> tuple[float, ...]:
    """Return the difference of each seed's values, seeds ascending."""
    return tuple(values[seed] - baseline[seed] for seed in sorted(values))


def _grouped(results: Iterable[Result]) -> list[tuple[tuple[str, float], list[Result]]]:
    """Group runs by (init, fraction), fractions ascending and the baseline last."""

    def key(run: Result) -> tuple[bool, str, float]:
        """Return the sort key of a run."""
        return run.init == BASELINE, run.init, run.fraction

    return [((init, fraction), list(runs)) for (_, init, fraction), runs in groupby(sorted(results, key=key), key)]


def _by_seed(runs: Sequence[Result]) -> dict[int, float]:
    """Return the accuracy of each seed, averaged over splits."""
    accuracies_of: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        accuracies_of[run.seed].append(run.accuracy)
    return {seed: float(np.mean(values)) for seed, values in accuracies_of.items()}


def _means(runs: Sequence[Result]) -> np.ndarray:
    """Return resampled accuracies (draws,), averaged over splits."""
    by_split: dict[int, list[Result]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.seed):
        by_split[run.split].append(run)
    resampled = [
        resampled_means(np.stack([run.correct for run in split_runs]), seed=split)
        for split, split_runs in sorted(by_split.items())
    ]
    return np.mean(resampled, axis=0)
