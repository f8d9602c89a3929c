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

PART = 16  # clips per task


@dataclass(frozen=True, kw_only=True)
class ExtractionConfig:
    """Feature extractor, number of frames, and resources of each task."""

    extractor: Extractor | None
    frames: int  # the first ones of each clip
    cpus: float
    gpus: float

    @property
    def device(self) -> str:
        """Torch device: "cuda" if tasks have a GPU, else "cpu"."""
        return "cuda" if self.gpus else "cpu"

    def cut(self, clips: GeneratedClips) -> GeneratedClips:
        """Return the first `frames` frames of every stream."""
        cut: list[Any] = [None if stream is None else stream[:, : self.frames] for stream in clips]
        return GeneratedClips(*cut)


def extract_real(chosen: ReferenceSet, eyes: ExtractionConfig, desc: str) -> ClipStatistics:
    """Compute the statistics of a set of real clips, in its order."""
    parts = [(chosen.url, chosen.manifest, rows) for rows in _split(chosen.rows)]
    return _run_and_join(_statistics_of_real, parts, eyes, len(chosen.rows), desc)


def extract_generated(model: Model, codes: np.ndarray, eyes: ExtractionConfig, desc: str) -> ClipStatistics:
    """Compute the statistics of clips generated from codes (N, Z), in their order, for any number of workers."""
    shared = ray.put(replace(model, discriminator=None))  # a network with spectral norm cannot be pickled
    return _run_and_join(_statistics_of_generated, [(shared, part) for part in _split(codes)], eyes, len(codes), desc)


def find_nearest(
    asked: np.ndarray, sources: np.ndarray, url: str, manifest: Manifest, groups: np.ndarray, eyes: ExtractionConfig
) -> NearestNeighbors:
    """Find the nearest clips of a dataset for each of Q query clips, one row group per task.

    Args:
        asked: query patterns (Q, D) from `vgan.metrics.nearest_neighbors.normalize_blocks`.
        sources: (Q,) str, video of each query, whose clips are excluded; "" for generated clips.
        url: URL of the dataset.
        manifest: manifest of the dataset.
        groups: row groups to search, rows of `cluster.dataset.order.row_group_index`.
        eyes: frames to use and resources per task.
    """
    queries = ray.put((asked, sources))
    parts = [(queries, url, manifest, group) for group in groups]
    best = NearestNeighbors.none(len(asked))
    with progress_bar(total=int(groups[:, 3].sum()), unit="clip", desc="search for copies") as bar:
        for group, part in zip(
            groups, map_tasks(_find_nearest, parts, eyes, cpus=eyes.cpus, gpus=eyes.gpus), strict=True
        ):
            best = best.min(part)
            bar.update(int(group[3]))
    return best


def _statistics_of_real(eyes: ExtractionConfig, url: str, manifest: Manifest, rows: np.ndarray) -> ClipStatistics:
    keep_freed_memory()
    clips = GeneratedClips(read_frames(url, manifest, rows), None, None, None)
    return compute_statistics(eyes.cut(clips), eyes.extractor, eyes.device)


def _statistics_of_generated(eyes: ExtractionConfig, model: Model, codes: np.ndarray) -> ClipStatistics:
    keep_freed_memory()
    assert model.generator is not None
    model.generator.to(eyes.device)
    return compute_statistics(eyes.cut(model.decode(codes)), eyes.extractor, eyes.device)


def _find_nearest(
    eyes: ExtractionConfig, queries: tuple[np.ndarray, np.ndarray], url: str, manifest: Manifest, group: np.ndarray
) -> NearestNeighbors:
    shard, number, first, _ = (int(value) for value in group)
    path = join_url(url, manifest.shards[shard].path)
    table = read_row_group(path, number, ["frames", "source_id"])
    patterns = normalize_blocks(block_means(decode_frames(table["frames"], manifest.clip)[:, : eyes.frames]))
    sources = np.array(table["source_id"].to_pylist(), str)
    return nearest_neighbors(queries[0], patterns, sources=sources, own=queries[1], first=first)


def _run_and_join(
    work: Callable[..., ClipStatistics], parts: Sequence[tuple[Any, ...]], eyes: ExtractionConfig, total: int, desc: str
) -> ClipStatistics:
    """Run `work` on all parts and join the results in the order of the parts, which makes rows deterministic."""
    with progress_bar(total=total, unit="clip", desc=desc) as bar:
        result: ClipStatistics | None = None
        for part in map_tasks(work, parts, eyes, cpus=eyes.cpus, gpus=eyes.gpus):
            result = part if result is None else concatenate([result, part])
            bar.update(part.num)
    assert result is not None
    return result


def _split(array: np.ndarray) -> list[np.ndarray]:
    return [array[start : start + PART] for start in range(0, len(array), PART)]
