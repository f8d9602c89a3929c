"""Test videos in a pre-training dataset."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from cluster.dataset.manifest import read_manifest
from cluster.dataset.shards import read_clips
from cluster.transfer.labeled_clips import UNKNOWN
from vgan.errors import InputError
from vgan.transfer.ucf101 import read_split


def leaked_videos(root: str, splits: list[int], pretraining_url: str) -> list[str]:
    """Videos of a pre-training set that are test videos of one of the splits, or cut from the same source as one.

    Known by their names, as UCF101's files are called (v_<Class>_gGG_cCC): a copy under another name is not found.

    Raises:
        InputError: the pre-training set cannot be read.
    """
    tested = {
        _group(v.path.name) for number in splits for v in read_split(Path(root), number).videos if v.side == "test"
    }
    manifest = read_manifest(pretraining_url)
    seen = read_clips(pretraining_url, manifest, columns=["source_id"])["source_id"].unique().to_pylist()
    return sorted(name for name in seen if _group(PurePosixPath(name).name) in tested)


def _group(name: str) -> str:
    """Class and group of a UCF101 file's name, whatever its case and ending; the name itself of any other."""
    found = re.match(r"(v_\w+_g\d+)_c\d+", name, re.IGNORECASE)
    return found[1].casefold() if found else name


def require_no_leakage(root: str, splits: list[int], pretraining_url: str, digest: str, allowed: bool) -> str:
    """What figures must say of the pre-training set, "" if nothing.

    Args:
        pretraining_url: the dataset; "" where the weights do not say what they were trained on.
        digest: that it had.

    Raises:
        InputError: it holds test videos, and that is not allowed; or nobody can tell.
    """
    way_out = "or give allow_test_leakage=true, and every figure will say so"
    if not pretraining_url:
        if allowed:
            return UNKNOWN
        raise InputError(
            "whether the checkpoint has seen test videos cannot be told: an exported or .t7 model does not say what it "
            f"was trained on. Give its run's folder, {way_out}"
        )
    try:
        if read_manifest(pretraining_url).digest != digest:
            raise InputError("another dataset stands there now")
        found = leaked_videos(root, splits, pretraining_url)
    except (InputError, FileNotFoundError) as fault:
        if allowed:
            return UNKNOWN
        raise InputError(
            f"whether the checkpoint has seen test videos cannot be told, because its dataset {pretraining_url!r} "
            f"cannot be read ({fault}): put it back, {way_out}"
        ) from fault
    if found and not allowed:
        raise InputError(
            f"{len(found)} videos of the checkpoint's dataset {pretraining_url!r} are test videos or of their groups, "
            f"{found[0]} first: train on the training list alone, {way_out}"
        )
    return f"pre-training saw {len(found)} test videos" if found else ""
