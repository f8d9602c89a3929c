"""Labeled clips in memory: videos in the UCF101 layout, prepared as any other dataset, one or more clips per video."""

from __future__ import annotations

from collections.abc import Sequence
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
from vgan.transfer.ucf101 import Split
from vgan.video.config import VideoConfig

UNKNOWN = "pre-training set not known"
HELD_OUT_SHARE = 0.2  # of the groups of each class in the training list, to choose settings on


@dataclass(frozen=True, kw_only=True)
class LabeledClips:
    """Clips of one split in memory; videos in the order of the official lists, training before test."""

    protocol: str  # name of the test protocol in metric names
    classes: tuple[str, ...]
    frames: np.ndarray  # (N, T, H, W, 3) uint8
    videos: np.ndarray  # (V,) str, "<Class>/<file>"
    labels: np.ndarray  # (V,) int64 in 0..K-1
    train: np.ndarray  # (V,) bool
    rows: np.ndarray  # (V, R) int64, rows of `frames`: the R clips of each video; the first is the earliest
    num_missing: int  # listed videos that are not on disk
    num_rejected: int  # videos on disk that yielded no clip

    def summary(self) -> str:
        """Return a sentence with the numbers of classes, videos, missing and rejected videos."""
        return (
            f"{len(self.classes)} classes, {self.train.sum()} training and {(~self.train).sum()} test videos; "
            f"{self.num_missing} listed videos not on disk, {self.num_rejected} without a clip"
        )


def prepare_labeled_dataset(splits: Sequence[Split], out: str, config: VideoConfig, *, seed: int) -> Manifest:
    """Prepare the dataset of every video of any of the splits, or return the finished one.

    Args:
        splits: official splits with their videos on disk.
        out: URL of the dataset's folder.
        config: settings of clip extraction.
        seed: seed of the packing order.

    Raises:
        InputError: no video yields a clip, or `out` holds another dataset or is not shared by all nodes.
    """
    videos = {video.path: video for split in splits for video in split.videos}
    sources = [
        Source(uri=str(path), source_id=_source_id(path), bytes=path.stat().st_size, label=video.class_name)
        for path, video in sorted(videos.items())
    ]
    return prepare(sources, out, config, PackingConfig(seed=seed))


def config_for_test_clips(config: VideoConfig, clips_per_test_video: int) -> VideoConfig:
    """Return the settings that extract the required number of clips per video.

    For one clip the settings are unchanged: the first frames of a video. For more, windows start every quarter of a
    clip's length, and the limits on clips per video are raised to 1000.
    """
    if clips_per_test_video == 1:
        return config
    clip, filters = config.clip, config.filters
    return replace(
        config,
        clip=replace(clip, stride=clip.num_frames // 4, max_per_video=1000),
        filters=replace(filters, max_clips_per_video=1000),
    )


def load_labeled_split(
    split: Split,
    url: str,
    manifest: Manifest,
    dataset: str,
    *,
    clips_per_test_video: int = 1,
    validation: bool = False,
    validation_fold: int = 0,
) -> LabeledClips:
    """Join the official lists of a split with the prepared clips.

    Args:
        split: official split with its videos on disk.
        url: URL of the prepared dataset.
        manifest: manifest of the prepared dataset.
        dataset: dataset name in the protocol, e.g. "ucf101"; the name of a partial copy states its number of videos.
        clips_per_test_video: clips per test video, evenly spaced; clips repeat if a video has fewer.
        validation: test on groups held out from the training list and ignore the test list.
        validation_fold: seed of the selection of the groups held out.

    Raises:
        InputError: no training video or no test video has a clip.
    """
    table = read_clips(url, manifest, columns=["source_id", "start_s"]).to_pydict()
    rows_by_video: dict[str, list[int]] = {}
    for row in np.argsort(table["start_s"], kind="stable").tolist():
        rows_by_video.setdefault(table["source_id"][row], []).append(row)
    with_clips = [video for video in split.videos if _source_id(video.path) in rows_by_video]
    videos = [video for video in with_clips if video.side == "train"] if validation else with_clips
    labels = np.array([split.compact_labels[video.label] for video in videos], np.int64)
    train = np.array([video.side == "train" for video in videos])
    if validation:
        train = ~held_out_mask(labels, [video.group for video in videos], HELD_OUT_SHARE, seed=validation_fold)
    if train.all() or not train.any():
        side = "test" if train.all() else "training"
        raise InputError(
            f"no {side} video of split {split.number} in {str(split.videos[0].path.parents[1])!r} has a clip: "
            f"add videos{', or set validation=false' if validation else ''}"
        )
    stored = np.zeros((len(videos), clips_per_test_video), np.int64)
    for index, video in enumerate(videos):
        video_rows = rows_by_video[_source_id(video.path)]
        stored[index] = video_rows[0] if train[index] else _evenly_spaced(video_rows, clips_per_test_video)
    used, rows = np.unique(stored, return_inverse=True)
    return LabeledClips(
        protocol=protocol_name(
            _dataset_name(dataset, split),
            split.number,
            test_clips=clips_per_test_video,
            fold=validation_fold if validation else None,
        ),
        classes=split.class_names,
        frames=read_frames(url, manifest, used),
        videos=np.array([_source_id(video.path) for video in videos]),
        labels=labels,
        train=train,
        rows=rows.reshape(stored.shape),
        num_missing=len(split.missing),
        num_rejected=len(split.videos) - len(with_clips),
    )


def _evenly_spaced(rows: list[int], num: int) -> list[int]:
    """Select `num` of the rows, evenly spaced from first to last; one: the first. Rows repeat if there are fewer."""
    return [rows[round(i)] for i in np.linspace(0, len(rows) - 1, num)] if num > 1 else rows[:1]


def _dataset_name(dataset: str, split: Split) -> str:
    """Return the dataset name in the protocol: a partial copy of UCF101 states its number of videos."""
    if dataset == "ucf101" and split.missing:
        return f"ucf101-partial{len(split.videos)}of{len(split.videos) + len(split.missing)}"
    return dataset


def _source_id(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def labeled_dataset_url(out: str, clips_per_test_video: int = 1) -> str:
    """Return the URL of a sweep's labeled dataset; datasets with several clips per test video have their own."""
    return join_url(out, "clips" if clips_per_test_video == 1 else "clips-several")
