"""Scene filter on the cluster: classifier file, one classifier per worker process, scene counts of a dataset."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.storage.files import exists, read_bytes
from cluster.storage.urls import absolute_url
from vgan.errors import InputError
from vgan.scenes.config import SceneConfig
from vgan.scenes.labels import scene_column
from vgan.video.config import VideoConfig

if TYPE_CHECKING:
    from vgan.scenes.scoring import (
        SceneClassifier,  # imports torch, which takes seconds and is not needed without a filter
    )


def resolve_classifier(config: VideoConfig) -> VideoConfig:
    """Return the settings with `scene.sha256` set to the digest of the classifier's file.

    The digest identifies the classifier in the dataset's settings, independent of the file's path.

    Raises:
        InputError: the file does not exist, is no supported classifier, or does not match `scene.sha256`.
    """
    scene = config.scene
    if not scene.weights:
        if scene.sha256:
            raise InputError("scene.sha256 is set without a classifier: give its file in scene.weights=")
        return config
    return replace(config, scene=replace(scene, sha256=_checked_digest(scene.weights, scene.sha256)))


def video_settings(config: VideoConfig) -> VideoConfig:
    """Return the video settings alone of a job's settings, with the digest of the scene classifier's file."""
    return resolve_classifier(VideoConfig(**{f.name: getattr(config, f.name) for f in fields(VideoConfig)}))


@functools.lru_cache(maxsize=1)
def _checked_digest(weights: str, sha256: str) -> str:
    """Return the file's SHA-256 after checking it against `sha256` (if not empty) and loading its network."""
    from vgan.scenes.networks import load_scene_network

    content = _read(weights)
    digest = hashlib.sha256(content).hexdigest()
    if sha256 and digest != sha256.lower():
        raise InputError(
            f"scene.weights={weights!r} has SHA-256 {digest}, not scene.sha256={sha256}: give the right file"
        )
    load_scene_network(content, weights)
    return digest


def _read(weights: str) -> bytes:
    """Read the classifier's file; raises InputError if it does not exist."""
    url = absolute_url(weights)
    if not exists(url):
        raise InputError(f"no file at scene.weights={weights!r}: give the file of a Places365 classifier")
    return read_bytes(url)


@functools.lru_cache(maxsize=1)
def process_classifier(weights: str, sha256: str) -> SceneClassifier:
    """Load this process's classifier, cached across videos; on the GPU if the Ray task has a share of one.

    Raises:
        InputError: the file does not exist, or differs from the one the job started with.
    """
    import torch

    from vgan.scenes.networks import load_scene_network
    from vgan.scenes.scoring import SceneClassifier

    content = _read(weights)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(
            f"scene.weights={weights!r} differs between nodes or has changed: use a file on shared storage"
        )
    return SceneClassifier(load_scene_network(content, weights), "cuda" if torch.cuda.is_available() else "cpu")


def scene_mismatches(clips: pa.Table, config: SceneConfig) -> list[str | None]:
    """Return for each clip None, or the reject's detail if no wanted category reaches the threshold."""
    if not config.sha256 or not config.min_probability:
        return [None] * clips.num_rows
    wanted = config.keep_categories or config.categories
    scores = np.stack([clips[scene_column(category)].to_numpy() for category in wanted], axis=1)  # (N, K)
    best_index, threshold = scores.argmax(1), config.min_probability
    return [
        None if score >= threshold else f"{scene}; {wanted[k]} {score:.3g}, at least {threshold:g}"
        for scene, k, score in zip(clips["scene"].to_pylist(), best_index, scores.max(1), strict=True)
    ]


def count_scenes(clips: pa.Table, categories: Sequence[str], threshold: float) -> dict[str, Any]:
    """Count the clips and videos that show each category, and the most frequent top labels.

    Returns:
        `categories`: clips, videos and mean probability of each; `likeliest`: clips per top label, the 20 most
        frequent.
    """
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
