"""The scene filter on the cluster: the classifier's file, a classifier a process, what a dataset shows of scenes."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from cluster.shards import Manifest, small_columns
from vgan.config import SceneConfig, VideoConfig
from vgan.errors import BadInput
from vgan.scenes.labels import labels_of, scene_column

if TYPE_CHECKING:
    from vgan.scenes.scoring import Classifier  # with torch, which takes seconds and is not needed without a filter


def with_classifier(config: VideoConfig) -> VideoConfig:
    """The settings with the SHA-256 of the classifier's file, by which its work is known wherever the file lies.

    Raises:
        BadInput: no such file, none of a known kind, or not the one that `scene.sha256` means.
    """
    scene = config.scene
    if not scene.weights:
        if scene.sha256:
            raise BadInput("scene.sha256 names a classifier, and there is none: give its file in scene.weights=")
        return config
    return replace(config, scene=replace(scene, sha256=_checked_digest(scene.weights, scene.sha256)))


@functools.lru_cache(maxsize=1)
def _checked_digest(weights: str, sha256: str) -> str:
    """The file's SHA-256, once the network in it is known to work."""
    from vgan.scenes.networks import open_network

    content = _read(weights)
    found = hashlib.sha256(content).hexdigest()
    if sha256 and found != sha256.lower():
        raise BadInput(f"scene.weights={weights!r} has SHA-256 {found}, not scene.sha256={sha256}: give the right file")
    open_network(content, weights)
    return found


def _read(weights: str) -> bytes:
    url = storage.absolute(weights)
    if not storage.exists(url):
        raise BadInput(f"no file at scene.weights={weights!r}: give a Places365 classifier's")
    return storage.read_bytes(url)


@functools.lru_cache(maxsize=1)
def worker_classifier(weights: str, sha256: str) -> Classifier:
    """This process's own classifier, kept from video to video; on the GPU if the task was given a share of one.

    Raises:
        BadInput: the file is gone, or another one than the job began with.
    """
    import torch

    from vgan.scenes.networks import open_network
    from vgan.scenes.scoring import Classifier

    content = _read(weights)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise BadInput(
            f"scene.weights={weights!r} is not the same file on every node, or has changed: use a shared one"
        )
    return Classifier(open_network(content, weights), "cuda" if torch.cuda.is_available() else "cpu")


def refusals(clips: pa.Table, config: SceneConfig) -> list[str | None]:
    """For each clip what is told of it where it shows none of the scenes that are kept, else None."""
    if not config.sha256 or not config.threshold:
        return [None] * clips.num_rows
    kept = config.keep or config.categories
    scores = np.stack([clips[scene_column(category)].to_numpy() for category in kept], axis=1)  # (N, K)
    best, bound = scores.argmax(1), config.threshold
    return [
        None if score >= bound else f"{scene}; {kept[k]} {score:.3g}, at least {bound:g}"
        for scene, k, score in zip(clips["scene"].to_pylist(), best, scores.max(1), strict=True)
    ]


def scene_counts(clips: pa.Table, categories: Sequence[str], threshold: float) -> dict[str, Any]:
    """How many clips and videos show each category, and which labels are most often the likeliest."""
    of_categories = {}
    for category in categories:
        showing = clips.filter(pc.greater_equal(clips[scene_column(category)], max(threshold, 1e-9)))
        of_categories[category] = {
            "clips": showing.num_rows,
            "videos": len(pc.unique(showing["source_id"])),
            "mean": round(pc.mean(clips[scene_column(category)]).as_py() or 0.0, 4),
        }
    table = (
        clips.group_by("scene")
        .aggregate([([], "count_all")])
        .sort_by([("count_all", "descending"), ("scene", "ascending")])
    )
    return {
        "categories": of_categories,
        "likeliest": dict(zip(table["scene"].to_pylist()[:20], table["count_all"].to_pylist()[:20], strict=True)),
    }


def rows_showing(url: str, manifest: Manifest, categories: Sequence[str], threshold: float) -> np.ndarray:
    """Whether each clip of a dataset, in stored order, shows one of these categories: bool (clips,).

    Raises:
        BadInput: the dataset was not looked at for one of them, or no clip shows any.
    """
    for category in categories:
        try:
            labels_of(category)
        except ValueError as fault:
            raise BadInput(str(fault)) from fault
        if category not in manifest.scenes:
            there = ", ".join(manifest.scenes) or "none: prepare it with scene.weights="
            raise BadInput(f"{url!r} holds no scores of category {category!r}; it has {there}")
    columns = [scene_column(category) for category in categories]
    found = [
        np.max([table[name].to_numpy() for name in columns], axis=0) >= threshold
        for table in small_columns(url, manifest, columns, "scenes")
    ]
    showing = np.concatenate(found) if found else np.empty(0, bool)
    if not showing.any():
        raise BadInput(f"no clip of {url!r} shows {' or '.join(categories)} with {threshold:g}: lower scene_threshold=")
    return showing
