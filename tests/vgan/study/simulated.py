"""Raters with known preferences."""

from __future__ import annotations

import numpy as np

from vgan.study.ratings import Votes
from vgan.study.trials import GOLD, Plan, Study, make_study, session

Preferences = dict[tuple[str, str], float]


def plain_study(**plan: object) -> Study:
    """Two methods, three categories, thirty clips of each."""
    methods = ("two_stream", "autoencoder", "real")
    clips = {m: {c: [f"{m}/{c}/{i}.mp4" for i in range(30)] for c in ("golf", "beach", "baby")} for m in methods}
    return make_study(
        clips, Plan(**{"per_cell": 20, "per_rater": 40, "gold_per_rater": 4, "static": False, "seed": 1} | plan)
    )


def simulated_votes(
    sessions: list[list[int]],
    study: Study,
    truth: Preferences,
    seed: int,
    *,
    likeness: float = 0.0,
    random_raters: int = 0,
) -> Votes:
    """Votes of raters who prefer the first of each pair with a known probability.

    Args:
        likeness: a rater's own probability is drawn from a Beta distribution around the truth, the narrower the larger
            this is; 0: all have the same.
        random_raters: so many, the last ones, do not look.
    """
    rng, rows = np.random.default_rng(seed), []
    for rater, numbers in enumerate(sessions):
        own = {pair: rng.beta(p * likeness, (1 - p) * likeness) if likeness else p for pair, p in truth.items()}
        careless = rater >= len(sessions) - random_raters
        for number in numbers:
            trial = study.trials[number]
            share = 0.98 if trial.kind == GOLD else own[trial.first.method, trial.second.method]
            first = rng.random() < (0.5 if careless else share)
            rows.append((f"r{rater}", number, first == (trial.left == 0)))
    rater, trial, left = zip(*rows, strict=True)
    return Votes(rater=np.array(rater), trial=np.array(trial), left=np.array(left))


def sessions_of(study: Study, raters: int) -> list[list[int]]:
    """What each rater sees."""
    return [session(study, rater) for rater in range(raters)]
