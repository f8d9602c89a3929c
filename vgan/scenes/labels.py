"""Labels of Places365 (365 scenes) and the four scene categories that the paper trained on.

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
def places365_labels() -> tuple[str, ...]:
    """Return the 365 label names in the order of a classifier's outputs."""
    return tuple((Path(__file__).parent / "places365.txt").read_text().split())


def category_labels(category: str) -> tuple[str, ...]:
    """Return the labels of a category: a name in `PAPER`, or a single Places365 label.

    Raises:
        ValueError: no category has that name; the message suggests the most similar one.
    """
    if category in PAPER:
        return PAPER[category]
    if category in places365_labels():
        return (category,)
    close = difflib.get_close_matches(category, [*PAPER, *places365_labels()], n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise ValueError(
        f"no scene category {category!r}{hint} Available: {', '.join(PAPER)} and the 365 labels of Places365, "
        "e.g. racecourse or train_station/platform"
    )


def scene_column(category: str) -> str:
    """Return the name of a category's column in a dataset."""
    return f"scene_{category.replace('/', '_')}"


def category_probabilities(probabilities: np.ndarray, categories: list[str]) -> np.ndarray:
    """Sum label probabilities (N, 365) over the labels of each category: (N, K), K categories."""
    index = {label: i for i, label in enumerate(places365_labels())}
    return np.stack(
        [probabilities[:, [index[label] for label in category_labels(c)]].sum(1) for c in categories], axis=1
    )
