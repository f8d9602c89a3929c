"""Hidden units over a whole dataset: every clip is looked at on Ray, and only the highest peaks are kept."""

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
    """One unit with the clips that it fires most for, K of them."""

    number: int
    stands_out: float  # how far above other clips' peaks these are, in standard deviations
    motion: float  # share of its peaks that a held frame takes away, 0..1
    peaks: list[float]
    videos: list[str]
    rows: list[int]  # clips in stored order
    frames: np.ndarray  # (K,) of the peaks
    clips: np.ndarray  # (K, T, H, W, 3) uint8
    segmented: np.ndarray  # the same, faded where it does not fire


def find_top_clips(probe: LayerProbe, url: str, manifest: Manifest, *, num: int, cpus: float) -> TopActivations:
    """For every unit the `num` clips of a dataset that it fires most for, one a video; a row group a task.

    Memory does not grow with the dataset: a task gives back its highest peaks alone.
    """
    groups = row_group_index(manifest)
    parts = [(url, manifest, group, num) for group in groups]
    found: TopActivations | None = None
    with progress_bar(total=int(groups[:, 3].sum()), unit="clip", desc="hidden units") as bar:
        for group, part in zip(groups, map_tasks(_activations, parts, probe, cpus=cpus, gpus=0), strict=True):
            found = part if found is None else found.join(part)
            bar.update(int(group[3]))
    if found is None:
        raise InputError(f"no clip in {url!r}")
    return found


def _activations(probe: LayerProbe, url: str, manifest: Manifest, group: np.ndarray, num: int) -> TopActivations:
    shard, number, first, _ = (int(value) for value in group)
    table = read_row_group(join_url(url, manifest.shards[shard].path), number, ["frames", "source_id"])
    clips, videos = decode_frames(table["frames"], manifest.clip), np.array(table["source_id"].to_pylist(), str)
    rows, parts = np.arange(first, first + len(clips)), (slice(i, i + PART) for i in range(0, len(clips), PART))
    return reduce(TopActivations.join, (top_activations(probe.maps(clips[p]), rows[p], videos[p], num) for p in parts))


def collect_unit_clips(
    probe: LayerProbe, top: TopActivations, url: str, manifest: Manifest, units: list[int]
) -> list[HiddenUnit]:
    """The units with pictures of their clips; one that never fires is left out."""
    found = []
    scores = top.stands_out
    for number in units:
        there = np.isfinite(top.peaks[number]) & (top.peaks[number] > 0)
        rows = top.rows[number][there]
        if not len(rows):
            continue
        stored, places = np.unique(rows, return_inverse=True)
        clips = read_frames(url, manifest, stored)[places]
        masks, frames = activation_masks(probe.maps(clips)[:, number], clips.shape[1:4])
        found.append(
            HiddenUnit(
                number=number,
                stands_out=float(scores[number]),
                motion=motion_share(probe, clips, frames, number),
                peaks=top.peaks[number][there].tolist(),
                videos=top.videos[number][there].tolist(),
                rows=rows.tolist(),
                frames=frames,
                clips=clips,
                segmented=fade_background(clips, masks),
            )
        )
    return found
