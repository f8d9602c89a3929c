"""Labelled videos to memory: the UCF101 layout through the same prepare pipeline, one clip a video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster import storage
from cluster.ingest import prepare
from cluster.shards import Manifest, read_clips, to_frames
from cluster.sources import Source
from vgan.config import VideoConfig
from vgan.transfer.finetune import protocol_name
from vgan.transfer.ucf101 import Split, read_split


@dataclass(frozen=True, kw_only=True)
class LabelledClips:
    """One split's clips in memory, in the official lists' order."""

    protocol: str  # of the test, as metric names spell it
    classes: tuple[str, ...]
    clip_ids: np.ndarray  # (N,) str
    frames: np.ndarray  # (N, T, H, W, 3) uint8
    labels: np.ndarray  # (N,) int64 in 0..K-1
    train: np.ndarray  # (N,) bool
    num_missing: int  # listed videos that are not on disk
    num_rejected: int  # videos on disk without a clip

    def summary(self) -> str:
        """Counts for a person, what is missing included."""
        return (
            f"{len(self.classes)} classes, {self.train.sum()} training and {(~self.train).sum()} test clips; "
            f"{self.num_missing} listed videos not on disk, {self.num_rejected} without a clip"
        )


def prepare_labelled(
    root: str, splits: list[int], out: str, config: VideoConfig, *, seed: int, shard_mb: int = 400
) -> Manifest:
    """Make (or find) the dataset of every video that any of the splits lists."""
    videos = {v.path: v for number in splits for v in read_split(Path(root), number).videos}
    sources = [
        Source(uri=str(path), source_id=_source_id(path), bytes=path.stat().st_size, label=video.class_name)
        for path, video in sorted(videos.items())
    ]
    return prepare(sources, out, config, seed=seed, shard_mb=shard_mb)


def load_split(root: str, number: int, url: str, manifest: Manifest, dataset: str) -> LabelledClips:
    """Join a split's official lists with the prepared clips.

    Args:
        root: folder of UCF-101/ and ucfTrainTestlist/.
        number: 1, 2 or 3.
        url: the prepared dataset; manifest is its own.
        dataset: name for the protocol, e.g. ucf101; a partial copy says so in the name.
    """
    split = read_split(Path(root), number)
    table = read_clips(url, manifest, columns=["clip_id", "source_id", "start_s", "frames"])
    first: dict[str, int] = {}
    starts = table["start_s"].to_pylist()
    for row, source in enumerate(table["source_id"].to_pylist()):
        if source not in first or starts[row] < starts[first[source]]:
            first[source] = row
    videos = [v for v in split.videos if _source_id(v.path) in first]
    rows = np.array([first[_source_id(v.path)] for v in videos])
    return LabelledClips(
        protocol=protocol_name(_dataset_name(dataset, split), number),
        classes=split.class_names,
        clip_ids=np.array(table["clip_id"].to_pylist())[rows],
        frames=to_frames(table["frames"], manifest.clip)[rows],
        labels=np.array([split.compact_labels[v.label] for v in videos], np.int64),
        train=np.array([v.side == "train" for v in videos]),
        num_missing=len(split.missing),
        num_rejected=len(split.videos) - len(videos),
    )


def _dataset_name(dataset: str, split: Split) -> str:
    if dataset == "ucf101" and split.missing:
        return f"ucf101-partial{len(split.videos)}of{len(split.videos) + len(split.missing)}"
    return dataset


def _source_id(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def dataset_url(out: str) -> str:
    """Where a sweep keeps its labelled clips."""
    return storage.join(out, "clips")
