"""Trials of a study and their assignment to raters, as pure functions of the manifest's seed.

A trial is two clips of one category with fixed sides: half of a cell's trials show the first method on the left.
Assignment needs no state: the session of rater k depends on the seed and k only, so raters can resume, and servers can
restart or run in several instances.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

QUESTION = "Which video is more realistic?"
REAL, STATIC, SCRAMBLED = "real", "static", "scrambled"  # sources of clips other than the methods
PAIR, GOLD, PRACTICE = "pair", "gold", "practice"
PRACTICE_TRIALS = 2
_ORDER, _SESSION = 1, 2  # ids of separate random streams


@dataclass(frozen=True, kw_only=True)
class TrialClip:
    """Origin of one clip of a trial."""

    method: str  # name of a method, or real, static or scrambled
    source: str  # URL of the file, or of the dataset followed by "#" and the clip
    index: int  # index among the clips of its source method and category


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Two clips shown side by side."""

    kind: str  # pair; gold: attention check, real against scrambled; practice: the same, not counted
    category: str
    first: TrialClip
    second: TrialClip
    left: int  # clip on the left: 0 the first, 1 the second


@dataclass(frozen=True, kw_only=True)
class StudyDesign:
    """Numbers of trials of a study."""

    trials_per_cell: int  # trials of each pair of methods in each category
    trials_per_rater: int  # maximum number of trials per rater, gold trials included
    gold_per_rater: int  # gold trials per rater
    static: bool  # also compare each method with a still frame
    seed: int

    def __post_init__(self) -> None:
        if self.trials_per_cell < 2 or self.trials_per_cell % 2:
            raise ValueError(
                f"trials_per_cell must be even, to balance sides, and at least 2, got {self.trials_per_cell}"
            )
        if not 0 <= self.gold_per_rater < self.trials_per_rater:
            got = f"got {self.gold_per_rater} of {self.trials_per_rater}"
            raise ValueError(f"gold_per_rater must be at least 0 and below trials_per_rater, {got}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be at least 0 and below 2^32, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class Study:
    """Methods, categories and all trials; the number of a trial is its index in `trials`."""

    methods: tuple[str, ...]  # without real
    categories: tuple[str, ...]
    plan: StudyDesign
    trials: tuple[Trial, ...]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Pairs (X, Y) of "prefer X over Y": method and method, method and real, method and still frame."""
        static = [(m, STATIC) for m in self.methods if self.plan.static]
        return [*combinations(self.methods, 2), *((m, REAL) for m in self.methods), *static]

    def numbers(self, kind: str) -> list[int]:
        """Return the numbers of the trials of one kind."""
        return [number for number, trial in enumerate(self.trials) if trial.kind == kind]


def make_study(clips: Mapping[str, Mapping[str, Sequence[str]]], plan: StudyDesign) -> Study:
    """Draw all trials of a study, in random order with gold and practice trials interspersed.

    Args:
        clips: method (including `real`) -> category -> sources of its clips, at least one each.
        plan: numbers of trials, and the seed.
    """
    rng = np.random.default_rng(plan.seed)
    methods = tuple(name for name in clips if name != REAL)
    study = Study(methods=methods, categories=tuple(clips[REAL]), plan=plan, trials=())
    trials: list[Trial] = []
    for first, second in study.pairs:
        for category in study.categories:
            trials += _cell(clips, PAIR, category, (first, second), plan.trials_per_cell, rng)
    # Twice as many gold trials as one rater sees, so that raters do not know them from other raters.
    for kind, num in ((GOLD, 2 * plan.gold_per_rater), (PRACTICE, PRACTICE_TRIALS)):
        for number in range(num):
            category = study.categories[number % len(study.categories)]
            cell = _cell(clips, kind, category, (REAL, SCRAMBLED), 1, rng)
            trials += [replace(trial, left=number % 2) for trial in cell]  # balance the sides
    return replace(study, trials=tuple(trials[i] for i in rng.permutation(len(trials))))


def _cell(
    clips: Mapping[str, Mapping[str, Sequence[str]]],
    kind: str,
    category: str,
    methods: tuple[str, str],
    num: int,
    rng: np.random.Generator,
) -> Iterator[Trial]:
    """Yield `num` trials of one pair of methods in one category; clips repeat only after all have been used."""
    columns = []
    for method in methods:
        # A still frame comes from a clip of the compared method, a scrambled clip from a real one.
        origin = {STATIC: methods[0], SCRAMBLED: REAL}.get(method, method)
        sources = clips[origin][category]
        rounds = -(-num // len(sources))
        order = np.concatenate([rng.permutation(len(sources)) for _ in range(rounds)])[:num]
        columns.append([TrialClip(method=method, source=sources[i], index=int(i)) for i in order])
    sides = rng.permutation(np.arange(num) % 2)
    for first, second, left in zip(*columns, sides, strict=True):
        yield Trial(kind=kind, category=category, first=first, second=second, left=int(left))


def rater_session(study: Study, rater: int) -> list[int]:
    """Return the numbers of the trials of rater k = 0, 1, ..., in order and without practice trials.

    Raters share one endless list of rounds; each round holds every pair trial once, in a new random order. Rater k
    takes the k-th segment of it. All trials so get equally many votes, and trials that share a rater in one round are
    combined with others in the next.

    Args:
        study: the trials.
        rater: k, at least 0.
    """
    plan, pairs, gold = study.plan, study.numbers(PAIR), study.numbers(GOLD)
    size = min(plan.trials_per_rater - plan.gold_per_rater, len(pairs))
    start = rater * size
    rounds = range(start // len(pairs), (start + size - 1) // len(pairs) + 1)
    endless = np.concatenate([_shuffled(pairs, plan.seed, _ORDER, r) for r in rounds]).tolist()
    first = start - rounds[0] * len(pairs)
    # A segment across two rounds can contain a trial twice; it then extends to the next trial that is not a repeat.
    pair_trials = list(dict.fromkeys(endless[first:]))[:size]
    checks = _shuffled(gold, plan.seed, _SESSION, rater)[: plan.gold_per_rater].tolist()
    return _shuffled(pair_trials + checks, plan.seed, _SESSION, rater, 1).tolist()


def _shuffled(values: Sequence[int], *stream: int) -> np.ndarray:
    """Shuffle values with the random generator seeded by `stream`."""
    return np.random.default_rng(stream).permutation(np.asarray(values, dtype=int))


def static_clip(frames: np.ndarray) -> np.ndarray:
    """Repeat the middle frame of a clip (T, H, W, 3) over its length."""
    return np.repeat(frames[len(frames) // 2][None], len(frames), axis=0)


def scrambled_clip(frames: np.ndarray, seed: int, block: int = 8) -> np.ndarray:
    """Shuffle the blocks of a clip (T, H, W, 3), independently per frame; H and W are multiples of `block` pixels."""
    rng, (num, height, width, _) = np.random.default_rng(seed), frames.shape
    rows, columns = height // block, width // block
    blocks = frames.reshape(num, rows, block, columns, block, 3).swapaxes(2, 3).reshape(num, -1, block, block, 3)
    mixed = np.stack([frame[rng.permutation(rows * columns)] for frame in blocks])
    return mixed.reshape(num, rows, columns, block, block, 3).swapaxes(2, 3).reshape(frames.shape)


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Join two clips (T, H, W, 3) into one (T, 2H, 4W, 3), left and right.

    In a single file, size, name and timing do not identify either clip. Pixels are doubled in height and width, so that
    4:2:0 chroma subsampling preserves their color.
    """
    return np.concatenate([left, right], axis=2).repeat(2, axis=1).repeat(2, axis=2)
