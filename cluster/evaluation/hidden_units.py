"""Clips with the highest activations of hidden units over a dataset, found in parallel Ray tasks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np

from cluster.dataset.manifest import Manifest
from cluster.dataset.order import row_group_index
from cluster.dataset.shards import decode_frames, read_frames
from cluster.evaluation.clip_features import PART
from cluster.observability.progress_bar import progress_bar
from cluster.runtime.task_map import map_tasks
from cluster.storage.files import read_row_group
from cluster.storage.urls import join_url
from vgan.analysis.hidden_units import (
    LayerProbe,
    TopActivations,
    activation_masks,
    fade_background,
    motion_share,
    top_activations,
)
from vgan.errors import InputError


@dataclass(frozen=True, kw_only=True)
class HiddenUnit:
    """Hidden unit with the K clips that activate it most."""

    number: int
    stands_out: float  # distance of these peaks above those of other clips, in standard deviations
    motion: float  # share of its peak activations lost when one frame is repeated, 0..1
    peaks: list[float]
    videos: list[str]
    rows: list[int]  # indices of the clips in stored order
    frames: np.ndarray  # (K,) index of the frame with the peak
    clips: np.ndarray  # (K, T, H, W, 3) uint8
    segmented: np.ndarray  # the same, faded where the unit is inactive


def find_top_clips(probe: LayerProbe, url: str, manifest: Manifest, *, num: int, cpus: float) -> TopActivations:
    """Find the `num` clips of a dataset that activate each unit most, at most one per video.

    Each row group is one Ray task. Memory does not grow with the dataset: a task returns only its highest peaks.

    Raises:
        InputError: the dataset has no clips.
    """
    groups = row_group_index(manifest)
    parts = [(url, manifest, group, num) for group in groups]
    top: TopActivations | None = None
    with progress_bar(total=int(groups[:, 3].sum()), unit="clip", desc="hidden units") as bar:
        for group, part in zip(groups, map_tasks(_top_of_group, parts, probe, cpus=cpus, gpus=0), strict=True):
            top = part if top is None else top.join(part)
            bar.update(int(group[3]))
    if top is None:
        raise InputError(f"no clips in {url!r}")
    return top


def _top_of_group(probe: LayerProbe, url: str, manifest: Manifest, group: np.ndarray, num: int) -> TopActivations:
    shard, number, first, _ = (int(value) for value in group)
    table = read_row_group(join_url(url, manifest.shards[shard].path), number, ["frames", "source_id"])
    clips, videos = decode_frames(table["frames"], manifest.clip), np.array(table["source_id"].to_pylist(), str)
    rows, parts = np.arange(first, first + len(clips)), (slice(i, i + PART) for i in range(0, len(clips), PART))
    return reduce(TopActivations.join, (top_activations(probe.maps(clips[p]), rows[p], videos[p], num) for p in parts))


def collect_unit_clips(
    probe: LayerProbe, top: TopActivations, url: str, manifest: Manifest, units: list[int]
) -> list[HiddenUnit]:
    """Read and segment the top clips of the chosen units; units that are never active are omitted."""
    shown = []
    scores = top.stands_out
    for number in units:
        active = np.isfinite(top.peaks[number]) & (top.peaks[number] > 0)
        rows = top.rows[number][active]
        if not len(rows):
            continue
        stored, inverse = np.unique(rows, return_inverse=True)
        clips = read_frames(url, manifest, stored)[inverse]
        masks, frames = activation_masks(probe.maps(clips)[:, number], clips.shape[1:4])
        shown.append(
            HiddenUnit(
                number=number,
                stands_out=float(scores[number]),
                motion=motion_share(probe, clips, frames, number),
                peaks=top.peaks[number][active].tolist(),
                videos=top.videos[number][active].tolist(),
                rows=rows.tolist(),
                frames=frames,
                clips=clips,
                segmented=fade_background(clips, masks),
            )
        )
    return shown
