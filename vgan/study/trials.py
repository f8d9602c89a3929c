"""The trials of a study, and which of them each rater sees: pure functions of the manifest's seed.

A trial is two clips of one category, a side for each, fixed once: half of a cell's trials show the first method left.
Nothing is handed out while the study runs: rater k's session follows from the seed and k alone, so that a rater may
come back, and servers be killed or be several.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

QUESTION = "Which video is more realistic?"
REAL, STATIC, SCRAMBLED = "real", "static", "scrambled"  # what is shown beside the methods
PAIR, GOLD, PRACTICE = "pair", "gold", "practice"
PRACTICE_TRIALS = 2
_ORDER, _SESSION = 1, 2  # random streams of their own


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Where one side of a trial comes from."""

    method: str  # a method, or real, static or scrambled
    source: str  # url of the file or dataset, and "#" and the clip in it
    index: int  # among the clips of its source method and category


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Two clips side by side. `left` tells which one is on the left: 0 the first, 1 the second."""

    kind: str  # pair; gold: real beside scrambled, which nobody who looks gets wrong; practice: the same, not counted
    category: str
    first: Clip
    second: Clip
    left: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How many trials a study has."""

    per_cell: int  # trials of each pair of methods in each category
    per_rater: int  # trials that one rater sees at most, gold ones included
    gold_per_rater: int
    static: bool  # each method beside a still frame too
    seed: int

    def __post_init__(self) -> None:
        if self.per_cell < 2 or self.per_cell % 2:
            raise ValueError(f"per_cell must be even, for the sides, and at least 2, got {self.per_cell}")
        if not 0 <= self.gold_per_rater < self.per_rater:
            got = f"got {self.gold_per_rater} of {self.per_rater}"
            raise ValueError(f"gold_per_rater must be at least 0 and below per_rater, {got}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be at least 0 and below 2^32, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is compared, and every trial of it; a trial's number is its place here."""

    methods: tuple[str, ...]  # without real
    categories: tuple[str, ...]
    plan: Plan
    trials: tuple[Trial, ...]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every pair (X, Y) of "prefer X over Y": methods, each and real, each and a still frame."""
        static = [(m, STATIC) for m in self.methods if self.plan.static]
        return [*combinations(self.methods, 2), *((m, REAL) for m in self.methods), *static]

    def numbers(self, kind: str) -> list[int]:
        """The trials of a kind."""
        return [number for number, trial in enumerate(self.trials) if trial.kind == kind]


def make_study(clips: Mapping[str, Mapping[str, Sequence[str]]], plan: Plan) -> Study:
    """All trials, in an order that says nothing: gold and practice are spread among the others.

    Args:
        clips: sources of the clips of each method, `real` among them, in each category, at least one in each.
        plan: how many trials.
    """
    rng = np.random.default_rng(plan.seed)
    methods = tuple(name for name in clips if name != REAL)
    study = Study(methods=methods, categories=tuple(clips[REAL]), plan=plan, trials=())
    trials: list[Trial] = []
    for first, second in study.pairs:
        for category in study.categories:
            trials += _cell(clips, PAIR, category, (first, second), plan.per_cell, rng)
    # Of gold twice as many as a rater sees, so that they are not known by heart from other raters.
    for kind, num in ((GOLD, 2 * plan.gold_per_rater), (PRACTICE, PRACTICE_TRIALS)):
        for number in range(num):
            category = study.categories[number % len(study.categories)]
            made = _cell(clips, kind, category, (REAL, SCRAMBLED), 1, rng)
            trials += [replace(trial, left=number % 2) for trial in made]  # as often left as right
    return replace(study, trials=tuple(trials[i] for i in rng.permutation(len(trials))))


def _cell(
    clips: Mapping[str, Mapping[str, Sequence[str]]],
    kind: str,
    category: str,
    methods: tuple[str, str],
    num: int,
    rng: np.random.Generator,
) -> Iterator[Trial]:
    """`num` trials of one pair of methods in one category; a clip comes again only when all have been shown."""
    columns = []
    for method in methods:
        # A still frame is of one of the method's own clips; what is scrambled is real.
        origin = {STATIC: methods[0], SCRAMBLED: REAL}.get(method, method)
        sources = clips[origin][category]
        rounds = -(-num // len(sources))
        order = np.concatenate([rng.permutation(len(sources)) for _ in range(rounds)])[:num]
        columns.append([Clip(method=method, source=sources[i], index=int(i)) for i in order])
    sides = rng.permutation(np.arange(num) % 2)
    for first, second, left in zip(*columns, sides, strict=True):
        yield Trial(kind=kind, category=category, first=first, second=second, left=int(left))


def session(study: Study, rater: int) -> list[int]:
    """Numbers of the trials that rater k = 0, 1, ... sees, in order; practice is not among them.

    Raters share one endless list in which every trial comes once in each round, newly shuffled: k takes the k-th
    stretch of it. So all trials get equally many votes, and neighbours in a round meet other raters in the next.
    """
    plan, pairs, gold = study.plan, study.numbers(PAIR), study.numbers(GOLD)
    size = min(plan.per_rater - plan.gold_per_rater, len(pairs))
    start = rater * size
    rounds = range(start // len(pairs), (start + size - 1) // len(pairs) + 1)
    endless = np.concatenate([_shuffled(pairs, plan.seed, _ORDER, r) for r in rounds]).tolist()
    first = start - rounds[0] * len(pairs)
    # A stretch across two rounds may meet a trial twice, and then goes on to one that it has not.
    taken = list(dict.fromkeys(endless[first:]))[:size]
    checks = _shuffled(gold, plan.seed, _SESSION, rater)[: plan.gold_per_rater].tolist()
    return _shuffled(taken + checks, plan.seed, _SESSION, rater, 1).tolist()


def _shuffled(values: Sequence[int], *stream: int) -> np.ndarray:
    """The values in an order that only the numbers of a stream decide."""
    return np.random.default_rng(stream).permutation(np.asarray(values, dtype=int))


def static_clip(frames: np.ndarray) -> np.ndarray:
    """The middle frame of a clip (T, H, W, 3), all the time."""
    return np.repeat(frames[len(frames) // 2][None], len(frames), axis=0)


def scrambled_clip(frames: np.ndarray, seed: int, block: int = 8) -> np.ndarray:
    """A clip (T, H, W, 3) whose blocks trade places, in each frame anew; H and W are multiples of `block`."""
    rng, (num, height, width, _) = np.random.default_rng(seed), frames.shape
    rows, columns = height // block, width // block
    blocks = frames.reshape(num, rows, block, columns, block, 3).swapaxes(2, 3).reshape(num, -1, block, block, 3)
    mixed = np.stack([frame[rng.permutation(rows * columns)] for frame in blocks])
    return mixed.reshape(num, rows, columns, block, block, 3).swapaxes(2, 3).reshape(frames.shape)


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two clips (T, H, W, 3) as one, (T, 2H, 4W, 3): one file cannot tell its halves apart by size, name or timing.

    Each pixel is doubled, so that 4:2:0 keeps its color.
    """
    return np.concatenate([left, right], axis=2).repeat(2, axis=1).repeat(2, axis=2)
