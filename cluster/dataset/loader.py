"""Data loader: batches from shards, in an order independent of the number of workers.

The clips of all epochs form one endless sequence, a pure function of (dataset digest, seed). Step k takes positions
k*B .. (k+1)*B of it, and rank r of N takes its share of those. The loader state is the number of clips consumed. It
does not depend on N, so a run resumes with the same clips at another number of workers.

Within an epoch, row groups are permuted and taken in windows; clips are permuted inside a window. Packing has already
shuffled all clips, so this is as good as a global shuffle and reads whole row groups. From the next epoch on, a clip
on the dataset's deletion list is replaced by another (`deletion_list.replace_deleted`). A reader restricted to a subset
of clips (for example a scene category) leaves the others out of every epoch; its order also depends on the subset.

Ray Data prepares datasets but does not serve training batches: it provides neither an order independent of the number
of workers nor a position to resume from, and on the same files it is several times slower (`make bench-distributed`).
JPEG strips are decoded on the training nodes' cores, about 400 clips/s per core, so no CPU nodes are needed for it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cluster.dataset.deletion_list import deleted_rows, replace_deleted
from cluster.dataset.manifest import Manifest
from cluster.dataset.order import WINDOW, epoch_order, rank_slice, row_group_index
from cluster.dataset.shards import combine_chunks, decode_frames
from cluster.storage.files import read_row_group
from cluster.storage.urls import join_url
from vgan.errors import InputError

AHEAD = WINDOW  # row groups to read ahead: a window needs all of its row groups from its first clip on
FETCHERS = 2  # threads that read row groups; an object store answers several requests as fast as one
DECODERS = 4  # threads that decode JPEG strips, about 600 clips/s per core


@dataclass(frozen=True)
class Batch:
    """A rank's share of a global batch: clip ids and uint8 frames (B, T, H, W, 3)."""

    clip_ids: list[str]
    frames: Tensor


class ClipReader:
    """Reader of a rank's share of every global batch."""

    def __init__(
        self,
        url: str,
        manifest: Manifest,
        *,
        seed: int,
        batch_size: int,
        rank: int,
        world_size: int,
        only: np.ndarray | None = None,
    ) -> None:
        """Open a dataset.

        Args:
            url: dataset folder.
            manifest: its manifest.
            seed: of the order.
            batch_size: global batch size in clips, at least `world_size`.
            rank: rank of this worker.
            world_size: number of workers.
            only: bool (clips,) in stored order, True for the clips to read; None reads all.

        Raises:
            InputError: `batch_size` is below `world_size`.
        """
        if batch_size < world_size:
            raise InputError(f"batch_size={batch_size} must be at least workers={world_size}: each worker needs a clip")
        self.url, self.manifest, self.seed = url, manifest, seed
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.groups = row_group_index(manifest)
        self.only = only
        self._cache: OrderedDict[int, tuple[list[str], pa.Array]] = OrderedDict()
        self._ahead: OrderedDict[int, Future[tuple[list[str], pa.Array]]] = OrderedDict()
        self._upcoming: list[int] = []  # row groups in the order of their first use in this epoch
        self._positions: dict[int, int] = {}  # row group -> position in `_upcoming`
        self._fetcher = ThreadPoolExecutor(FETCHERS, "fetch")
        self._decoders = ThreadPoolExecutor(DECODERS, "decode")

    def batches(self, consumed: int, *, pin: bool = False) -> Iterator[Batch]:
        """Yield batches endlessly.

        Args:
            consumed: position in the sequence of clips to start at: number of clips consumed over all ranks.
            pin: allocate frames in page-locked memory, for asynchronous copies to a GPU.
        """
        num_clips = int(self.groups[:, 3].sum()) if self.only is None else int(self.only.sum())
        first, end = rank_slice(self.batch_size, self.rank, self.world_size)
        epoch, order = -1, np.empty((0, 2), np.int64)
        while True:
            ids, stored = [], []
            for position in range(consumed + first, consumed + end):
                if position // num_clips != epoch:
                    epoch = position // num_clips
                    order = self._order(epoch)
                    self._upcoming = list(dict.fromkeys(order[position % num_clips :, 0].tolist()))
                    self._positions = {group: index for index, group in enumerate(self._upcoming)}
                group, row = order[position % num_clips]
                group_ids, group_frames = self._group(int(group))
                ids.append(group_ids[row])
                stored.append(group_frames[row : row + 1])
            yield Batch(ids, self._frames(stored, pin))
            consumed += self.batch_size

    def _order(self, epoch: int) -> np.ndarray:
        """Return `epoch_order` of the clips to read, deleted ones replaced.

        The deletion list is read when an epoch begins, and when the reader starts.
        """
        order = epoch_order(self.groups, self.manifest.digest, self.seed, epoch)
        positions = self.groups[order[:, 0], 2] + order[:, 1]
        if self.only is not None:
            order, positions = order[self.only[positions]], positions[self.only[positions]]
        rows = deleted_rows(self.url, self.manifest)
        return replace_deleted(order, positions, rows) if len(rows) else order

    def _frames(self, stored: list[pa.Array], pin: bool) -> Tensor:
        """Decode stored clips to uint8 (B, T, H, W, 3), JPEG strips in several threads."""
        spec = self.manifest.clip
        out = torch.empty((len(stored), spec.num_frames, spec.size, spec.size, 3), dtype=torch.uint8, pin_memory=pin)
        frames = out.numpy()

        def fill(index: int) -> None:
            frames[index] = decode_frames(stored[index], spec)[0]

        is_raw = pa.types.is_fixed_size_binary(stored[0].type)
        deque((map if is_raw else self._decoders.map)(fill, range(len(stored))), maxlen=0)
        return out

    def _group(self, index: int) -> tuple[list[str], pa.Array]:
        """Return clip ids and stored frames of a row group; caches one window and starts reading the next."""
        if index not in self._cache:
            future = self._ahead.pop(index, None)
            self._cache[index] = future.result() if future else self._read(index)
            if len(self._cache) > WINDOW:
                self._cache.popitem(last=False)
            self._read_ahead(index)
        self._cache.move_to_end(index)
        return self._cache[index]

    def _read_ahead(self, index: int) -> None:
        """Start reading the row groups after this one in threads; drop earlier ones that this rank did not use."""
        position = self._positions[index]
        for passed in [group for group in self._ahead if self._positions.get(group, -1) < position]:
            self._ahead.pop(passed).cancel()
        for later in self._upcoming[position + 1 : position + 1 + AHEAD]:
            if later not in self._cache and later not in self._ahead:
                self._ahead[later] = self._fetcher.submit(self._read, later)

    def _read(self, index: int) -> tuple[list[str], pa.Array]:
        shard, group = (int(v) for v in self.groups[index, :2])
        url = join_url(self.url, self.manifest.shards[shard].path)
        table = read_row_group(url, group, ["clip_id", "frames"])
        return table["clip_id"].to_pylist(), combine_chunks(table["frames"])


def prefetch(batches: Iterator[Batch], ahead: int = 2) -> Iterator[Batch]:
    """Prefetch batches in a background thread.

    Args:
        batches: an iterator with no other consumer.
        ahead: number of batches to prepare in advance.
    """
    with ThreadPoolExecutor(1, "batches") as thread:
        futures = deque(thread.submit(next, batches, None) for _ in range(ahead))
        while (batch := futures.popleft().result()) is not None:
            futures.append(thread.submit(next, batches, None))
            yield batch
