"""Labelled videos to memory: the UCF101 layout through the same prepare pipeline, one or several clips a video."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cluster.dataset.manifest import Manifest
from cluster.dataset.shards import read_clips, read_frames
from cluster.prepare.packing import PackingConfig
from cluster.prepare.pipeline import prepare
from cluster.sources.manifest import Source
from cluster.storage.urls import join_url
from vgan.errors import InputError
from vgan.transfer.label_subsets import held_out_mask
from vgan.transfer.scores import protocol_name
from vgan.transfer.ucf101 import Split, read_split
from vgan.video.config import VideoConfig

UNKNOWN = "pre-training set not known"
HELD_OUT_SHARE = 0.2  # of each class's training groups, for choosing settings


@dataclass(frozen=True, kw_only=True)
class LabeledClips:
    """One split's clips in memory, videos in the official lists' order."""

    protocol: str  # of the test, as metric names spell it
    classes: tuple[str, ...]
    frames: np.ndarray  # (N, T, H, W, 3) uint8
    videos: np.ndarray  # (V,) str
    labels: np.ndarray  # (V,) int64 in 0..K-1
    train: np.ndarray  # (V,) bool
    rows: np.ndarray  # (V, C) int64, the C clips of each video; the first is its earliest
    num_missing: int  # listed videos that are not on disk
    num_rejected: int  # videos on disk without a clip

    def summary(self) -> str:
        """Counts for a person, what is missing included."""
        return (
            f"{len(self.classes)} classes, {self.train.sum()} training and {(~self.train).sum()} test videos; "
            f"{self.num_missing} listed videos not on disk, {self.num_rejected} without a clip"
        )


def prepare_labeled_dataset(root: str, splits: list[int], out: str, config: VideoConfig, *, seed: int) -> Manifest:
    """Make (or find) the dataset of every video that any of the splits lists."""
    videos = {v.path: v for number in splits for v in read_split(Path(root), number).videos}
    sources = [
        Source(uri=str(path), source_id=_source_id(path), bytes=path.stat().st_size, label=video.class_name)
        for path, video in sorted(videos.items())
    ]
    return prepare(sources, out, config, PackingConfig(seed=seed))


def config_for_test_clips(config: VideoConfig, test_clips: int) -> VideoConfig:
    """The settings that give so many clips a video: its first frames alone, or windows four a clip's length."""
    if test_clips == 1:
        return config
    clip, gates = config.clip, config.filters
    return replace(
        config,
        clip=replace(clip, stride=clip.num_frames // 4, max_per_video=1000),
        filters=replace(gates, max_clips_per_video=1000),
    )


def load_labeled_split(
    root: str,
    number: int,
    url: str,
    manifest: Manifest,
    dataset: str,
    *,
    test_clips: int = 1,
    choose: bool = False,
    fold: int = 0,
) -> LabeledClips:
    """Join a split's official lists with the prepared clips.

    Args:
        root: folder of UCF-101/ and ucfTrainTestlist/.
        number: 1, 2 or 3.
        url: the prepared dataset; manifest is its own.
        dataset: name for the protocol, e.g. ucf101; a partial copy says so in the name.
        test_clips: of each test video, evenly spread; some come twice where it has fewer.
        choose: leave the test list alone, and test on groups held out from the training list.
        fold: seeds which ones.
    """
    split = read_split(Path(root), number)
    table = read_clips(url, manifest, columns=["source_id", "start_s"]).to_pydict()
    by_video: dict[str, list[int]] = {}
    for row in np.argsort(table["start_s"], kind="stable").tolist():
        by_video.setdefault(table["source_id"][row], []).append(row)
    listed = [v for v in split.videos if _source_id(v.path) in by_video]
    found = [v for v in listed if v.side == "train"] if choose else listed
    labels = np.array([split.compact_labels[v.label] for v in found], np.int64)
    train = np.array([v.side == "train" for v in found])
    if choose:
        train = ~held_out_mask(labels, [v.group for v in found], HELD_OUT_SHARE, seed=fold)
    if train.all() or not train.any():
        side = "test" if train.all() else "training"
        raise InputError(
            f"split {number} of {root!r} has no {side} video with a clip: give more videos, or validation=false"
        )
    stored = np.zeros((len(found), test_clips), np.int64)
    for place, video in enumerate(found):
        own = by_video[_source_id(video.path)]
        stored[place] = own[0] if train[place] else _spread(own, test_clips)
    used, rows = np.unique(stored, return_inverse=True)
    return LabeledClips(
        protocol=protocol_name(
            _dataset_name(dataset, split), number, test_clips=test_clips, fold=fold if choose else None
        ),
        classes=split.class_names,
        frames=read_frames(url, manifest, used),
        videos=np.array([_source_id(v.path) for v in found]),
        labels=labels,
        train=train,
        rows=rows.reshape(stored.shape),
        num_missing=len(split.missing),
        num_rejected=len(split.videos) - len(listed),
    )


def _spread(rows: list[int], num: int) -> list[int]:
    """`num` of the rows, evenly spread; the first alone for one."""
    return [rows[round(i)] for i in np.linspace(0, len(rows) - 1, num)] if num > 1 else rows[:1]


def _dataset_name(dataset: str, split: Split) -> str:
    if dataset == "ucf101" and split.missing:
        return f"ucf101-partial{len(split.videos)}of{len(split.videos) + len(split.missing)}"
    return dataset


def _source_id(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def labeled_dataset_url(out: str, test_clips: int = 1) -> str:
    """Where a sweep keeps its labelled clips."""
    return join_url(out, "clips" if test_clips == 1 else "clips-several")
