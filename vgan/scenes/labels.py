"""The 365 scene categories of Places365, and the four that the paper trained on.

places365.txt lists the labels in the order of a classifier's outputs, as categories_places365.txt of
https://github.com/CSAILVision/places365 (MIT) does, without the leading letter.
"""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path

import numpy as np

PAPER = {  # section 3.1: golf course, hospital rooms (babies), beaches and train station
    "golf": ("golf_course",),
    "beach": ("beach",),
    "train": ("train_station/platform",),
    "baby": ("hospital_room", "nursery"),
}


@cache
def labels() -> tuple[str, ...]:
    """The names of a classifier's outputs, in their order."""
    return tuple((Path(__file__).parent / "places365.txt").read_text().split())


def labels_of(category: str) -> tuple[str, ...]:
    """The labels that make up a category: one of PAPER's, or any label by its name.

    Raises:
        ValueError: there is none of that name; the nearest is named.
    """
    if category in PAPER:
        return PAPER[category]
    if category in labels():
        return (category,)
    close = difflib.get_close_matches(category, [*PAPER, *labels()], n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else ":"
    raise ValueError(
        f"no scene category {category!r}{hint} there are {', '.join(PAPER)} and the 365 labels of Places365, "
        "e.g. racecourse or train_station/platform"
    )


def scene_column(category: str) -> str:
    """The name of a category's column in a dataset."""
    return f"scene_{category.replace('/', '_')}"


def gather(probabilities: np.ndarray, categories: list[str]) -> np.ndarray:
    """Probabilities (N, 365) of labels as those of categories (N, K): sums over the labels that make each up."""
    index = {label: i for i, label in enumerate(labels())}
    return np.stack([probabilities[:, [index[label] for label in labels_of(c)]].sum(1) for c in categories], axis=1)
