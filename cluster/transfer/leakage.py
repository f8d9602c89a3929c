"""Test leakage: videos of a labeled test set in the dataset of pre-training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from cluster.dataset.manifest import read_manifest
from cluster.dataset.shards import read_clips
from cluster.transfer.labeled_clips import UNKNOWN
from vgan.errors import InputError
from vgan.transfer.ucf101 import Split


def leaked_videos(splits: Sequence[Split], pretraining_url: str) -> list[str]:
    """List the videos of a pre-training dataset that belong to the same UCF101 group as a test video of the splits.

    The clips of a group are cut from the same source video. Videos are compared by the names of UCF101's files
    (v_<Class>_gGG_cCC): a copy under another name is not detected.

    Args:
        splits: official splits with their videos on disk.
        pretraining_url: URL of the pre-training dataset.

    Returns:
        Sorted source ids.

    Raises:
        InputError: the pre-training dataset cannot be read.
    """
    test_groups = {_group(video.path.name) for split in splits for video in split.videos if video.side == "test"}
    manifest = read_manifest(pretraining_url)
    source_ids = read_clips(pretraining_url, manifest, columns=["source_id"])["source_id"].unique().to_pylist()
    return sorted(name for name in source_ids if _group(PurePosixPath(name).name) in test_groups)


def _group(name: str) -> str:
    """Return class and group of a UCF101 file name, independent of case and extension; another name is unchanged."""
    match = re.match(r"(v_\w+_g\d+)_c\d+", name, re.IGNORECASE)
    return match[1].casefold() if match else name


def require_no_leakage(splits: Sequence[Split], pretraining_url: str, digest: str, allowed: bool) -> str:
    """Check that a pre-training dataset contains no test video, and return a remark for figures.

    Args:
        splits: official splits with their videos on disk.
        pretraining_url: URL of the dataset; "" if the weights do not record their training dataset.
        digest: digest of the dataset at the time of training.
        allowed: return a remark instead of raising.

    Returns:
        The remark, "" if the dataset is known and contains no test video.

    Raises:
        InputError: the dataset contains test videos, or is unknown, and `allowed` is false.
    """
    hint = "or set allow_test_leakage=true, which adds a remark to every figure"
    if not pretraining_url:
        if allowed:
            return UNKNOWN
        raise InputError(
            "cannot check the checkpoint for test leakage: an exported or .t7 model does not say what it was trained "
            f"on. Give the folder of its run, {hint}"
        )
    try:
        if read_manifest(pretraining_url).digest != digest:
            raise InputError("it was replaced by another dataset")
        leaked = leaked_videos(splits, pretraining_url)
    except (InputError, FileNotFoundError) as error:
        if allowed:
            return UNKNOWN
        raise InputError(
            f"cannot check the checkpoint for test leakage: its dataset {pretraining_url!r} cannot be read ({error}). "
            f"Restore it, {hint}"
        ) from error
    if leaked and not allowed:
        raise InputError(
            f"the checkpoint's dataset {pretraining_url!r} contains {len(leaked)} test videos, or videos of their "
            f"groups, such as {leaked[0]}: train on the training list only, {hint}"
        )
    return f"pre-training saw {len(leaked)} test videos" if leaked else ""
