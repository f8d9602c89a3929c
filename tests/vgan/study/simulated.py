"""Simulated raters with known preferences."""

from __future__ import annotations

import numpy as np

from vgan.study.ratings import Votes
from vgan.study.trials import GOLD, Study, StudyDesign, make_study, rater_session

Preferences = dict[tuple[str, str], float]


def plain_study(**plan: object) -> Study:
    """Make a study of two methods and three categories with thirty clips each."""
    methods = ("two_stream", "autoencoder", "real")
    clips = {m: {c: [f"{m}/{c}/{i}.mp4" for i in range(30)] for c in ("golf", "beach", "baby")} for m in methods}
    return make_study(
        clips,
        StudyDesign(
            **{"trials_per_cell": 20, "trials_per_rater": 40, "gold_per_rater": 4, "static": False, "seed": 1} | plan
        ),
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
    """Simulate votes of raters who prefer the first clip of each pair with a known probability.

    Args:
        sessions: numbers of the trials of each rater.
        study: the trials.
        truth: pair of methods -> probability of preferring the first.
        seed: seed of the simulation.
        likeness: concentration of the Beta distribution around the true probability from which each rater's probability
            is drawn; 0 gives all raters the same probability.
        random_raters: number of raters, the last ones, who vote at random.
    """
    rng, rows = np.random.default_rng(seed), []
    for rater, numbers in enumerate(sessions):
        preferences = {pair: rng.beta(p * likeness, (1 - p) * likeness) if likeness else p for pair, p in truth.items()}
        careless = rater >= len(sessions) - random_raters
        for number in numbers:
            trial = study.trials[number]
            share = 0.98 if trial.kind == GOLD else preferences[trial.first.method, trial.second.method]
            first = rng.random() < (0.5 if careless else share)
            rows.append((f"r{rater}", number, first == (trial.left == 0)))
    rater, trial, left = zip(*rows, strict=True)
    return Votes(rater=np.array(rater), trial=np.array(trial), left=np.array(left))


def sessions_of(study: Study, raters: int) -> list[list[int]]:
    """Return the numbers of the trials of each rater."""
    return [rater_session(study, rater) for rater in range(raters)]
