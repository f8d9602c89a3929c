"""Features and statistics of clips, extracted in parallel Ray tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray

from cluster.dataset.manifest import Manifest
from cluster.dataset.shards import decode_frames, read_frames
from cluster.evaluation.reference_set import ReferenceSet
from cluster.observability.progress_bar import progress_bar
from cluster.runtime.task_map import map_tasks
from cluster.storage.files import read_row_group
from cluster.storage.urls import join_url
from vgan.allocator import keep_freed_memory
from vgan.metrics.clip_statistics import ClipStatistics, compute_statistics, concatenate
from vgan.metrics.extractors import Extractor
from vgan.metrics.nearest_neighbors import NearestNeighbors, block_means, nearest_neighbors, normalize_blocks
from vgan.models.pretrained import GeneratedClips, Model

PART = 16  # clips that a task looks at


@dataclass(frozen=True, kw_only=True)
class ExtractionConfig:
    """What looks, and with what resources."""

    extractor: Extractor | None
    frames: int  # of each clip, its first ones
    cpus: float
    gpus: float

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    def cut(self, clips: GeneratedClips) -> GeneratedClips:
        """The frames that are looked at."""
        cut: list[Any] = [None if stream is None else stream[:, : self.frames] for stream in clips]
        return GeneratedClips(*cut)


def extract_real(chosen: ReferenceSet, eyes: ExtractionConfig, desc: str) -> ClipStatistics:
    """Look at the clips of a set, in their order."""
    parts = [(chosen.url, chosen.manifest, rows) for rows in _parts(chosen.rows)]
    return _concatenated(_extract_real, parts, eyes, len(chosen.rows), desc)


def extract_generated(model: Model, codes: np.ndarray, eyes: ExtractionConfig, desc: str) -> ClipStatistics:
    """Look at what a model draws from codes (N, Z), in their order: the same on any number of workers."""
    shared = ray.put(replace(model, discriminator=None))  # one with spectral norm does not pickle
    return _concatenated(_extract_generated, [(shared, part) for part in _parts(codes)], eyes, len(codes), desc)


def find_nearest(
    asked: np.ndarray, sources: np.ndarray, url: str, manifest: Manifest, groups: np.ndarray, eyes: ExtractionConfig
) -> NearestNeighbors:
    """The nearest clips of a dataset to Q asked ones, a row group at a time.

    Args:
        asked: what `vgan.metrics.nearest_neighbors.normalize_blocks` gives, (Q, D).
        sources: (Q,) str, videos whose clips do not count; "" for drawn clips.
        groups: which row groups are searched, rows of `cluster.dataset.order.row_group_index`.
    """
    questions = ray.put((asked, sources))
    parts = [(questions, url, manifest, group) for group in groups]
    found = NearestNeighbors.none(len(asked))
    with progress_bar(total=int(groups[:, 3].sum()), unit="clip", desc="search for copies") as bar:
        for group, part in zip(
            groups, map_tasks(_find_nearest, parts, eyes, cpus=eyes.cpus, gpus=eyes.gpus), strict=True
        ):
            found = found.min(part)
            bar.update(int(group[3]))
    return found


def _extract_real(eyes: ExtractionConfig, url: str, manifest: Manifest, rows: np.ndarray) -> ClipStatistics:
    keep_freed_memory()
    clips = GeneratedClips(read_frames(url, manifest, rows), None, None, None)
    return compute_statistics(eyes.cut(clips), eyes.extractor, eyes.device)


def _extract_generated(eyes: ExtractionConfig, model: Model, codes: np.ndarray) -> ClipStatistics:
    keep_freed_memory()
    assert model.generator is not None
    model.generator.to(eyes.device)
    return compute_statistics(eyes.cut(model.decode(codes)), eyes.extractor, eyes.device)


def _find_nearest(
    eyes: ExtractionConfig, asked: tuple[np.ndarray, np.ndarray], url: str, manifest: Manifest, group: np.ndarray
) -> NearestNeighbors:
    shard, number, first, _ = (int(value) for value in group)
    path = join_url(url, manifest.shards[shard].path)
    table = read_row_group(path, number, ["frames", "source_id"])
    known = normalize_blocks(block_means(decode_frames(table["frames"], manifest.clip)[:, : eyes.frames]))
    sources = np.array(table["source_id"].to_pylist(), str)
    return nearest_neighbors(asked[0], known, sources=sources, own=asked[1], first=first)


def _concatenated(
    work: Callable[..., ClipStatistics], parts: Sequence[tuple[Any, ...]], eyes: ExtractionConfig, total: int, desc: str
) -> ClipStatistics:
    """The looks at all parts, joined as they come: in order, so that no row depends on who was faster."""
    with progress_bar(total=total, unit="clip", desc=desc) as bar:
        whole: ClipStatistics | None = None
        for part in map_tasks(work, parts, eyes, cpus=eyes.cpus, gpus=eyes.gpus):
            whole = part if whole is None else concatenate([whole, part])
            bar.update(part.num)
    assert whole is not None
    return whole


def _parts(array: np.ndarray) -> list[np.ndarray]:
    return [array[start : start + PART] for start in range(0, len(array), PART)]
