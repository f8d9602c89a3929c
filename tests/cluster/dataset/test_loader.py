"""Order of clips in batches: complete epochs, independent of the number of workers and of restarts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.dataset.loader import Batch, ClipReader, prefetch
from cluster.dataset.manifest import Manifest, Shard
from cluster.dataset.order import WINDOW, epoch_order, rank_slice, row_group_index
from cluster.dataset.shards import ROWS_PER_GROUP, read_frames
from vgan.errors import InputError
from vgan.training.gan_step import StepRandomness
from vgan.video.config import ClipSpec

NUM_CLIPS = 150  # two shards of 70 clips, so row groups of 64, 6, 64, 6 and 10
Reader = Callable[..., ClipReader]


@pytest.fixture(scope="module")
def dataset(write_dataset: Callable[..., Manifest], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Manifest]:
    url = str(tmp_path_factory.mktemp("clips"))
    return url, write_dataset(url, NUM_CLIPS, shard_rows=70)


@pytest.fixture
def reader(dataset: tuple[str, Manifest]) -> Reader:
    def make(rank: int = 0, world_size: int = 1, batch_size: int = 8, seed: int = 0) -> ClipReader:
        return ClipReader(*dataset, seed=seed, batch_size=batch_size, rank=rank, world_size=world_size)

    return make


def take(reader: ClipReader, num: int, consumed: int = 0) -> list[Batch]:
    return list(itertools.islice(reader.batches(consumed), num))


def ids(batches: list[Batch]) -> list[str]:
    return [clip_id for batch in batches for clip_id in batch.clip_ids]


def big_dataset(*shard_rows: int) -> Manifest:
    """Make a manifest without files."""
    shards = [Shard(path=f"{n}", rows=rows, bytes=0, sha256="") for n, rows in enumerate(shard_rows)]
    return Manifest(clip=ClipSpec(), config={}, counts={}, shards=shards)


def test_group_table_covers_every_clip_in_stored_order() -> None:
    assert row_group_index(big_dataset(130, 64, 1)).tolist() == [
        [0, 0, 0, 64],
        [0, 1, 64, 64],
        [0, 2, 128, 2],
        [1, 0, 130, 64],
        [2, 0, 194, 1],
    ]


@pytest.mark.parametrize("shard_rows", [(1,), (64,), (65, 3), (700, 700, 33), (5000,)])
def test_epoch_order_holds_every_clip_once(shard_rows: tuple[int, ...]) -> None:
    groups = row_group_index(big_dataset(*shard_rows))
    order = epoch_order(groups, "a" * 64, seed=3, epoch=2)
    positions = groups[order[:, 0], 2] + order[:, 1]
    assert sorted(positions.tolist()) == list(range(sum(shard_rows)))
    assert (order[:, 1] < groups[order[:, 0], 3]).all()


def test_epoch_order_shuffles_within_windows_of_row_groups() -> None:
    order = epoch_order(row_group_index(big_dataset(64 * 40)), "a" * 64, seed=0, epoch=0)
    window = order[: WINDOW * ROWS_PER_GROUP, 0]
    assert len(np.unique(window)) == WINDOW
    assert len(np.unique(window[:ROWS_PER_GROUP])) == WINDOW  # groups are mixed
    assert sorted(np.unique(window)) != list(range(WINDOW))  # and are not the first ones of the dataset


def test_epoch_order_depends_on_digest_seed_and_epoch_only() -> None:
    groups = row_group_index(big_dataset(200))
    keys = [("a" * 64, 0, 0), ("b" * 64, 0, 0), ("a" * 64, 1, 0), ("a" * 64, 0, 1)]
    orders = {epoch_order(groups, *key).tobytes() for key in keys}
    assert len(orders) == 4
    assert epoch_order(groups, *keys[2]).tobytes() in orders


def test_batches_hold_every_clip_once_per_epoch(reader: Reader) -> None:
    stream = ids(take(reader(batch_size=10), 45))
    all_ids = sorted(f"clip-{n}" for n in range(NUM_CLIPS))
    epochs = [stream[n : n + NUM_CLIPS] for n in (0, 150, 300)]
    assert [sorted(epoch) for epoch in epochs] == [all_ids] * 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("batch_size", [8, 20])
def test_global_batches_do_not_depend_on_the_number_of_ranks(reader: Reader, world_size: int, batch_size: int) -> None:
    reference = take(reader(batch_size=batch_size), 25)
    shares = [take(reader(rank, world_size, batch_size), 25) for rank in range(world_size)]
    for step, expected in enumerate(reference):
        assert ids([share[step] for share in shares]) == expected.clip_ids
        assert torch.equal(torch.cat([share[step].frames for share in shares]), expected.frames)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("consumed", [0, 8, 5, 144, 148, 150, 152, 304])  # 144 to 152: across the end of an epoch
def test_batches_after_a_restart_continue_the_sequence(reader: Reader, consumed: int, world_size: int) -> None:
    uninterrupted = ids(take(reader(), 45))
    shares = [take(reader(rank, world_size), 3, consumed) for rank in range(world_size)]
    resumed = [clip_id for step in range(3) for share in shares for clip_id in share[step].clip_ids]
    assert resumed == uninterrupted[consumed : consumed + 24]


def test_batches_frames_belong_to_their_ids(reader: Reader) -> None:
    for batch in take(reader(), 40):
        assert batch.frames.dtype == torch.uint8
        assert batch.frames.shape == (8, 16, 32, 32, 3)
        for clip_id, frames in zip(batch.clip_ids, batch.frames.numpy(), strict=True):
            number = int(clip_id.removeprefix("clip-"))
            assert frames[0, 0, 0].tolist() == [0, number // 256, number % 256]
            assert (frames[1:] == number % 251).all()


def test_batches_of_jpeg_and_raw_datasets_agree(
    dataset: tuple[str, Manifest], write_dataset: Callable[..., Manifest], tmp_path: Path
) -> None:
    packed = write_dataset(str(tmp_path), NUM_CLIPS, shard_rows=70, codec="jpeg")
    packed = replace(packed, digest=dataset[1].digest)  # determines the order
    shares = [ClipReader(str(tmp_path), packed, seed=0, batch_size=8, rank=r, world_size=2) for r in range(2)]
    raw = [ClipReader(*dataset, seed=0, batch_size=8, rank=r, world_size=2) for r in range(2)]
    for ours, theirs in zip(shares, raw, strict=True):
        for batch, exact in zip(take(ours, 20), take(theirs, 20), strict=True):
            assert batch.clip_ids == exact.clip_ids
            assert batch.frames.shape == exact.frames.shape
            assert (batch.frames[:, 1:].int() - exact.frames[:, 1:].int()).abs().max() <= 2  # each clip has one color


@pytest.mark.parametrize("world_size", [1, 3])
def test_batches_of_a_subset_do_not_depend_on_the_number_of_workers(
    dataset: tuple[str, Manifest], world_size: int
) -> None:
    only = np.arange(NUM_CLIPS) % 4 == 1  # 38 clips
    settings = {"seed": 0, "batch_size": 8, "world_size": world_size, "only": only}
    ranks = [take(ClipReader(*dataset, rank=rank, **settings), 19) for rank in range(world_size)]
    stream = [clip_id for batches in zip(*ranks, strict=True) for clip_id in ids(list(batches))]
    order = epoch_order(row_group_index(dataset[1]), dataset[1].digest, 0, 0)
    positions = row_group_index(dataset[1])[order[:, 0], 2] + order[:, 1]
    assert stream[:38] == [f"clip-{position}" for position in positions if only[position]]
    for epoch in range(4):
        assert sorted(stream[38 * epoch : 38 * epoch + 38]) == sorted(f"clip-{n}" for n in np.flatnonzero(only))
    later = [take(ClipReader(*dataset, rank=rank, **settings), 9, consumed=80) for rank in range(world_size)]
    assert [i for batches in zip(*later, strict=True) for i in ids(list(batches))] == stream[80:]


def test_read_frames_returns_clips_in_the_requested_order(dataset: tuple[str, Manifest]) -> None:
    rows = np.array([149, 0, 69, 70, 64, 0])
    frames = read_frames(*dataset, rows)
    assert frames[:, 0, 0, 0, 2].tolist() == rows.tolist()
    assert read_frames(*dataset, rows[:0]).shape == (0, 16, 32, 32, 3)


def test_batches_order_depends_on_seed_and_dataset_digest(reader: Reader, dataset: tuple[str, Manifest]) -> None:
    first = ids(take(reader(), 10))
    assert ids(take(reader(), 10)) == first
    assert ids(take(reader(seed=1), 10)) != first
    url, manifest = dataset
    other = replace(manifest, digest=manifest.digest[::-1])
    assert ids(take(ClipReader(url, other, seed=0, batch_size=8, rank=0, world_size=1), 10)) != first


def test_batches_larger_than_the_dataset_wrap_into_the_next_epoch(
    write_dataset: Callable[..., Manifest], tmp_path: Path
) -> None:
    reader = ClipReader(str(tmp_path), write_dataset(str(tmp_path), 3), seed=0, batch_size=8, rank=0, world_size=1)
    stream = ids(take(reader, 3))
    assert [sorted(stream[n : n + 3]) for n in range(0, 24, 3)] == [["clip-0", "clip-1", "clip-2"]] * 8


def test_reader_refuses_a_batch_with_no_clip_for_some_worker(reader: Reader) -> None:
    with pytest.raises(InputError, match=r"batch_size=3 must be at least workers=4"):
        reader(0, 4, 3)


@pytest.mark.parametrize(("batch_size", "world_size"), [(8, 1), (8, 2), (8, 3), (7, 7), (13, 5)])
def test_share_splits_clips_like_their_random_draws(batch_size: int, world_size: int) -> None:
    draws = StepRandomness.of_step(seed=0, step=1, batch_size=batch_size, z_size=3)
    for rank in range(world_size):
        first, end = rank_slice(batch_size, rank, world_size)
        assert torch.equal(draws.share(rank, world_size).z, draws.z[first:end])
        assert end - first in (batch_size // world_size, batch_size // world_size + 1)


def test_prefetched_yields_the_same_batches_and_prepares_the_next_in_advance(reader: Reader) -> None:
    prepared: list[int] = []

    def watched() -> Iterator[Batch]:
        for number, batch in enumerate(reader().batches(0)):
            prepared.append(number)
            yield batch

    feed = prefetch(watched(), ahead=3)
    first = [next(feed) for _ in range(5)]
    feed.close()  # waits for batches in preparation
    assert prepared == list(range(8))
    for batch, expected in zip(first, take(reader(), 5), strict=True):
        assert batch.clip_ids == expected.clip_ids
        assert torch.equal(batch.frames, expected.frames)


def test_prefetched_ends_with_its_batches_and_raises_their_errors(reader: Reader) -> None:
    assert ids(list(prefetch(iter(take(reader(), 4))))) == ids(take(reader(), 4))

    def broken() -> Iterator[Batch]:
        yield from take(reader(), 1)
        raise OSError("the store is away")

    feed = prefetch(broken())
    assert next(feed).clip_ids
    with pytest.raises(OSError, match="the store is away"):
        next(feed)
