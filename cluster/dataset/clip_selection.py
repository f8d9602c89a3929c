"""Selection of a dataset's clips by scene or quality: views for training that copy nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from cluster.dataset.manifest import Manifest
from cluster.dataset.shards import iter_columns
from vgan.errors import InputError
from vgan.records import ClipScores
from vgan.scenes.labels import category_labels, scene_column
from vgan.video.quality_filters import quality


def scene_mask(url: str, manifest: Manifest, categories: Sequence[str], threshold: float) -> np.ndarray:
    """Mark the clips of a dataset, in stored order, that show one of these categories: bool (clips,).

    Raises:
        InputError: an unknown category, one without scores in the dataset, or no clip reaches `threshold`.
    """
    for category in categories:
        try:
            category_labels(category)
        except ValueError as error:
            raise InputError(str(error)) from error
        if category not in manifest.scenes:
            available = ", ".join(manifest.scenes) or "none (prepare it with scene.weights=)"
            raise InputError(f"{url!r} holds no scores of category {category!r}; scored categories: {available}")
    columns = [scene_column(category) for category in categories]
    masks = [
        np.max([table[name].to_numpy() for name in columns], axis=0) >= threshold
        for table in iter_columns(url, manifest, columns, "scenes")
    ]
    showing = np.concatenate(masks) if masks else np.empty(0, bool)
    if not showing.any():
        raise InputError(
            f"no clip of {url!r} reaches probability {threshold:g} of {' or '.join(categories)}: "
            "lower min_scene_probability="
        )
    return showing


def quality_mask(url: str, manifest: Manifest, threshold: float) -> np.ndarray:
    """Mark the clips of a dataset, in stored order, whose quality is at least `threshold`: bool (clips,).

    Scores that the dataset lacks, of an earlier version, count as perfect.

    Raises:
        InputError: no clip reaches `threshold`.
    """
    names = [field.name for field in fields(ClipScores)]
    masks = [
        quality(ClipScores(**{name: table[name].to_numpy() for name in table.column_names})) >= threshold
        for table in iter_columns(url, manifest, names, "quality")
    ]
    selected = np.concatenate(masks) if masks else np.empty(0, bool)
    if not selected.any():
        raise InputError(f"no clip of {url!r} reaches quality {threshold:g}: lower min_quality=")
    return selected
