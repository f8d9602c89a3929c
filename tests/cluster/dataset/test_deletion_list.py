"""Deletion list: readers skip its clips from the next epoch on; the next packing removes them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.dataset.deletion_list import DELETED, add_to_deletion_list, deleted_rows, read_deleted, replace_deleted
from cluster.dataset.loader import ClipReader
from cluster.dataset.manifest import read_manifest
from cluster.storage.files import read_json
from vgan.errors import InputError


def epochs(url: str, num: int, world_size: int = 1, consumed: int = 0) -> list[str]:
    """Return the ids of the first `num` clips after `consumed`, over all ranks."""
    manifest, ids = read_manifest(url), []
    readers = [
        ClipReader(url, manifest, seed=3, batch_size=4, rank=rank, world_size=world_size).batches(consumed)
        for rank in range(world_size)
    ]
    while len(ids) < num:
        ids += [name for reader in readers for name in next(reader).clip_ids]
    return ids[:num]


@pytest.fixture
def url(tmp_path: Path, write_dataset: Any) -> str:
    """24 clips of 12 videos: clip-2n and clip-2n+1 of video-n.mp4."""
    write_dataset(str(tmp_path / "clips"), num_clips=24)
    return str(tmp_path / "clips")


def test_running_reader_skips_deleted_video_from_the_next_epoch(url: str) -> None:
    manifest = read_manifest(url)
    batches = ClipReader(url, manifest, seed=3, batch_size=4, rank=0, world_size=1).batches(0)
    first = [name for batch in itertools.islice(batches, 6) for name in batch.clip_ids]
    assert sorted(first) == sorted(f"clip-{n}" for n in range(24))
    assert add_to_deletion_list(url, ["video-4.mp4"]) == 2
    second = [name for batch in itertools.islice(batches, 6) for name in batch.clip_ids]
    assert len(second) == 24
    assert set(second) == set(first) - {"clip-8", "clip-9"}


def test_remaining_clips_keep_their_positions_at_any_number_of_workers(url: str) -> None:
    before = epochs(url, 48)
    add_to_deletion_list(url, ["/videos/video-4.mp4", "video-7.mp4"])  # by uri and by id
    after = epochs(url, 48)
    deleted = {"clip-8", "clip-9", "clip-14", "clip-15"}
    assert [a for a, b in zip(after, before, strict=True) if b not in deleted] == [
        b for b in before if b not in deleted
    ]
    assert not deleted & set(after)
    assert epochs(url, 48, world_size=2) == after
    assert epochs(url, 28, consumed=20) == after[20:]


def test_deletion_list_grows_and_applies_after_another_pack(url: str, write_dataset: Any) -> None:
    add_to_deletion_list(url, ["video-1.mp4"])
    add_to_deletion_list(url, ["video-2.mp4", "unknown", " "])
    assert read_deleted(url) == {"video-1.mp4", "video-2.mp4", "unknown"}
    assert deleted_rows(url, read_manifest(url)).tolist() == [2, 3, 4, 5]
    write_dataset(url, num_clips=4, seed=9)  # rows differ from those in the list
    assert deleted_rows(url, read_manifest(url)).tolist() == [2, 3]


def test_reader_of_a_completely_deleted_dataset_raises(url: str) -> None:
    add_to_deletion_list(url, [f"video-{n}.mp4" for n in range(12)])
    with pytest.raises(InputError, match="every clip of the dataset is on its deletion list"):
        epochs(url, 4)


def test_without_takes_replacements_half_a_window_later() -> None:
    order = np.stack([np.arange(1000), np.zeros(1000, np.int64)], 1)
    result = replace_deleted(order, order[:, 0], np.array([10, 11, 900]))[:, 0]
    assert result[[10, 11, 900]].tolist() == [268, 268, 159]
    assert np.delete(result, [10, 11, 900]).tolist() == np.delete(order[:, 0], [10, 11, 900]).tolist()


def test_delete_before_packing_is_stored(tmp_path: Path) -> None:
    assert add_to_deletion_list(str(tmp_path), ["a"]) == 0
    assert read_json(str(tmp_path / DELETED))["names"] == ["a"]
