"""Looking at clips on Ray: real ones where they are stored, drawn ones where they are drawn, a few a task."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray

from cluster.dataset.manifest import Manifest
from cluster.dataset.shards import decode_frames, read_clips, read_frames
from cluster.observability.progress_bar import progress_bar
from cluster.runtime.placement import train_labels
from cluster.storage.files import read_row_group
from cluster.storage.urls import join_url
from vgan.allocator import keep_freed_memory
from vgan.errors import InputError
from vgan.metrics.clip_statistics import ClipStatistics, compute_statistics, concatenate
from vgan.metrics.extractors import Extractor
from vgan.metrics.nearest_neighbors import NearestNeighbors, block_means, nearest_neighbors, normalize_blocks
from vgan.metrics.sampling import balanced_order
from vgan.models.pretrained import GeneratedClips, Model
from vgan.transfer.label_subsets import ids_digest

PART = 16  # clips that a task looks at


@dataclass(frozen=True, kw_only=True)
class RealSet:
    """Real clips, drawn evenly over the classes and videos of a dataset."""

    url: str
    manifest: Manifest
    rows: np.ndarray  # (N,) int64, of the stored order, ascending
    ids: tuple[str, ...]
    sources: np.ndarray  # (N,) str
    num_classes: int
    num_sources: int

    @property
    def digest(self) -> str:
        return ids_digest([self.manifest.digest, *self.ids])


def choose(url: str, manifest: Manifest, num: int, seed: int, without: Collection[str] = ()) -> RealSet:
    """`num` clips of a dataset by `balanced_order`, leaving out those whose ids are in `without`.

    Raises:
        InputError: there are fewer.
    """
    columns = ["clip_id", "source_id", "label"]
    table = {key: np.array(values, object) for key, values in read_clips(url, manifest, columns).to_pydict().items()}
    order = balanced_order(list(table["label"]), list(table["source_id"]), seed)
    barred = set(without)
    rows = np.sort([row for row in order if table["clip_id"][row] not in barred][:num]).astype(np.int64)
    if len(rows) < num:
        raise InputError(f"num={num} clips of {url!r} are asked for, and it has {len(rows)}: give a smaller num=")
    sources = table["source_id"][rows].astype(str)
    return RealSet(
        url=url,
        manifest=manifest,
        rows=rows,
        ids=tuple(table["clip_id"][rows]),
        sources=sources,
        num_classes=len({label for label in table["label"][rows] if label is not None}),
        num_sources=len(set(sources)),
    )


@dataclass(frozen=True, kw_only=True)
class Eyes:
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


def look_at_reals(chosen: RealSet, eyes: Eyes, desc: str) -> ClipStatistics:
    """Look at the clips of a set, in their order."""
    parts = [(chosen.url, chosen.manifest, rows) for rows in _parts(chosen.rows)]
    return _together(_look_at_reals, parts, eyes, len(chosen.rows), desc)


def look_at_drawn(model: Model, codes: np.ndarray, eyes: Eyes, desc: str) -> ClipStatistics:
    """Look at what a model draws from codes (N, Z), in their order: the same on any number of workers."""
    shared = ray.put(replace(model, discriminator=None))  # one with spectral norm does not pickle
    return _together(_look_at_drawn, [(shared, part) for part in _parts(codes)], eyes, len(codes), desc)


def search(
    asked: np.ndarray, sources: np.ndarray, url: str, manifest: Manifest, groups: np.ndarray, eyes: Eyes
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
        for group, part in zip(groups, run_parts(_search, parts, eyes, cpus=eyes.cpus, gpus=eyes.gpus), strict=True):
            found = found.min(part)
            bar.update(int(group[3]))
    return found


# ---- tasks -------------------------------------------------------------------------------------------------------


def _look_at_reals(eyes: Eyes, url: str, manifest: Manifest, rows: np.ndarray) -> ClipStatistics:
    keep_freed_memory()
    clips = GeneratedClips(read_frames(url, manifest, rows), None, None, None)
    return compute_statistics(eyes.cut(clips), eyes.extractor, eyes.device)


def _look_at_drawn(eyes: Eyes, model: Model, codes: np.ndarray) -> ClipStatistics:
    keep_freed_memory()
    assert model.generator is not None
    model.generator.to(eyes.device)
    return compute_statistics(eyes.cut(model.decode(codes)), eyes.extractor, eyes.device)


def _search(
    eyes: Eyes, asked: tuple[np.ndarray, np.ndarray], url: str, manifest: Manifest, group: np.ndarray
) -> NearestNeighbors:
    shard, number, first, _ = (int(value) for value in group)
    path = join_url(url, manifest.shards[shard].path)
    table = read_row_group(path, number, ["frames", "source_id"])
    known = normalize_blocks(block_means(decode_frames(table["frames"], manifest.clip)[:, : eyes.frames]))
    sources = np.array(table["source_id"].to_pylist(), str)
    return nearest_neighbors(asked[0], known, sources=sources, own=asked[1], first=first)


def _together(
    work: Callable[..., ClipStatistics], parts: Sequence[tuple[Any, ...]], eyes: Eyes, total: int, desc: str
) -> ClipStatistics:
    """The looks at all parts, joined as they come: in order, so that no row depends on who was faster."""
    with progress_bar(total=total, unit="clip", desc=desc) as bar:
        whole: ClipStatistics | None = None
        for part in run_parts(work, parts, eyes, cpus=eyes.cpus, gpus=eyes.gpus):
            whole = part if whole is None else concatenate([whole, part])
            bar.update(part.num)
    assert whole is not None
    return whole


def run_parts(
    work: Callable[..., Any], parts: Sequence[tuple[Any, ...]], shared: Any, *, cpus: float, gpus: float
) -> Iterator[Any]:
    """The results of `work(shared, *part)`, a task each, in order."""
    task, place = (
        ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=2, label_selector=train_labels())(work),
        ray.put(shared),
    )
    waiting = deque(task.remote(place, *part) for part in parts)
    while waiting:
        yield ray.get(waiting.popleft())


def _parts(array: np.ndarray) -> list[np.ndarray]:
    return [array[start : start + PART] for start in range(0, len(array), PART)]
