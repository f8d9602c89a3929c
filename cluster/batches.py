"""Shards to batches, in an order that any number of workers agrees on.

The clips of epoch after epoch form one endless sequence, a pure function of (dataset digest, seed). Step k takes
positions k*B .. (k+1)*B of it, and rank r of N its share of those. The state is the number of clips consumed: it does
not depend on N, so a run continues with the same clips at another number of workers.

Within an epoch, row groups are permuted and taken in windows; clips are permuted inside a window. Packing has
shuffled all clips already, so this is as good as a global shuffle and reads whole row groups. A clip on the dataset's
deletion list has its place taken by another from the next epoch on (`deletion.without`). A reader of some clips only
(of a scene, say) leaves the others out of every epoch's order, which stays a pure function of the same and the choice.

Ray Data prepares datasets but does not feed from them: it has neither an order that is the same for any number of
workers nor a position to go on from, and on the same files it is several times slower (`make bench-distributed`).
JPEGs are read by the training nodes' own cores, some 400 clips/s each, so that CPU nodes have nothing to do for them.
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

from cluster import storage
from cluster.deletion import deleted_rows, without
from cluster.shards import ROWS_PER_GROUP, Manifest, one_array, to_frames
from vgan.errors import BadInput

WINDOW = 8  # row groups: 512 clips, 200 MB raw
AHEAD = WINDOW  # row groups that are read before they are needed: all of a window are needed as soon as it begins
FETCHERS = 2  # threads that read row groups; an object store answers several requests as fast as one
DECODERS = 4  # threads that read JPEGs, each core about 600 clips/s


@dataclass(frozen=True)
class Batch:
    """A rank's share of a global batch: ids, and frames (B, T, H, W, 3) uint8."""

    clip_ids: list[str]
    frames: Tensor


def group_table(manifest: Manifest) -> np.ndarray:
    """Every row group of a dataset as (shard, group within it, first clip, clips), int64 (G, 4)."""
    rows, first = [], 0
    for shard, entry in enumerate(manifest.shards):
        for group, start in enumerate(range(0, entry.rows, ROWS_PER_GROUP)):
            count = min(ROWS_PER_GROUP, entry.rows - start)
            rows.append((shard, group, first, count))
            first += count
    return np.array(rows, np.int64)


def epoch_order(groups: np.ndarray, digest: str, seed: int, epoch: int) -> np.ndarray:
    """All clips of one epoch as (index of the row group, row in it), int64 (clips, 2). Each occurs once."""
    rng = np.random.default_rng([int(digest[:15], 16), seed, epoch])
    shuffled = rng.permutation(len(groups))
    windows = []
    for start in range(0, len(shuffled), WINDOW):
        window = np.concatenate(
            [np.stack([np.full(groups[g, 3], g), np.arange(groups[g, 3])], 1) for g in shuffled[start : start + WINDOW]]
        )
        windows.append(rng.permutation(window))
    return np.concatenate(windows)


def share(batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """First clip and end of a rank's share of a global batch; the first ranks hold one more where it does not divide.

    As torch's `tensor_split` has it, which splits what is drawn for the same clips.
    """
    size, more = divmod(batch_size, world_size)
    first = rank * size + min(rank, more)
    return first, first + size + (rank < more)


class ClipReader:
    """Reads a rank's share of every global batch."""

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
        """Args: `batch_size` is global and at least `world_size`; `only`, bool (clips,) in stored order, are read."""
        if batch_size < world_size:
            raise BadInput(f"batch_size={batch_size} must be at least workers={world_size}: each needs a clip")
        self.url, self.manifest, self.seed = url, manifest, seed
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.groups = group_table(manifest)
        self.only = only
        self._cache: OrderedDict[int, tuple[list[str], pa.Array]] = OrderedDict()
        self._ahead: OrderedDict[int, Future[tuple[list[str], pa.Array]]] = OrderedDict()
        self._upcoming: list[int] = []  # row groups in the order of their first use in this epoch
        self._places: dict[int, int] = {}  # of row groups in `_upcoming`
        self._fetcher = ThreadPoolExecutor(FETCHERS, "fetch")
        self._decoders = ThreadPoolExecutor(DECODERS, "decode")

    def batches(self, consumed: int, *, pin: bool = False) -> Iterator[Batch]:
        """Batches without end, from the position after `consumed` clips of the sequence.

        Args:
            pin: put frames into page-locked memory, from which they move to a GPU while it computes.
        """
        num_clips = int(self.groups[:, 3].sum()) if self.only is None else int(self.only.sum())
        first, end = share(self.batch_size, self.rank, self.world_size)
        epoch, order = -1, np.empty((0, 2), np.int64)
        while True:
            ids, stored = [], []
            for position in range(consumed + first, consumed + end):
                if position // num_clips != epoch:
                    epoch = position // num_clips
                    order = self._order(epoch)
                    self._upcoming = list(dict.fromkeys(order[position % num_clips :, 0].tolist()))
                    self._places = {group: place for place, group in enumerate(self._upcoming)}
                group, row = order[position % num_clips]
                group_ids, group_frames = self._group(int(group))
                ids.append(group_ids[row])
                stored.append(group_frames[row : row + 1])
            yield Batch(ids, self._frames(stored, pin))
            consumed += self.batch_size

    def _order(self, epoch: int) -> np.ndarray:
        """`epoch_order` of what is read, without what the deletion list has when the epoch, or the reader, begins."""
        order = epoch_order(self.groups, self.manifest.digest, self.seed, epoch)
        places = self.groups[order[:, 0], 2] + order[:, 1]
        if self.only is not None:
            order, places = order[self.only[places]], places[self.only[places]]
        rows = deleted_rows(self.url, self.manifest)
        return without(order, places, rows) if len(rows) else order

    def _frames(self, stored: list[pa.Array], pin: bool) -> Tensor:
        """Frames (B, T, H, W, 3) uint8 of clips as they are stored; JPEGs are read by several threads."""
        spec = self.manifest.clip
        out = torch.empty((len(stored), spec.num_frames, spec.size, spec.size, 3), dtype=torch.uint8, pin_memory=pin)
        frames = out.numpy()

        def fill(place: int) -> None:
            frames[place] = to_frames(stored[place], spec)[0]

        raw = pa.types.is_fixed_size_binary(stored[0].type)
        deque((map if raw else self._decoders.map)(fill, range(len(stored))), maxlen=0)
        return out

    def _group(self, index: int) -> tuple[list[str], pa.Array]:
        """Clip ids and frames of a row group as they are stored; a window stays in memory, and the next one comes."""
        if index not in self._cache:
            begun = self._ahead.pop(index, None)
            self._cache[index] = begun.result() if begun else self._read(index)
            if len(self._cache) > WINDOW:
                self._cache.popitem(last=False)
            self._read_ahead(index)
        self._cache.move_to_end(index)
        return self._cache[index]

    def _read_ahead(self, index: int) -> None:
        """Begin to read the groups that come after one, in a thread, and forget those that only other ranks needed."""
        place = self._places[index]
        for passed in [group for group in self._ahead if self._places.get(group, -1) < place]:
            self._ahead.pop(passed).cancel()
        for later in self._upcoming[place + 1 : place + 1 + AHEAD]:
            if later not in self._cache and later not in self._ahead:
                self._ahead[later] = self._fetcher.submit(self._read, later)

    def _read(self, index: int) -> tuple[list[str], pa.Array]:
        shard, group = (int(v) for v in self.groups[index, :2])
        url = storage.join(self.url, self.manifest.shards[shard].path)
        table = storage.read_row_group(url, group, ["clip_id", "frames"])
        return table["clip_id"].to_pylist(), one_array(table["frames"])


def prefetched(batches: Iterator[Batch], ahead: int = 2) -> Iterator[Batch]:
    """The same batches, put together up to `ahead` early by a thread of their own.

    Args:
        batches: an iterator that nobody else uses.
        ahead: batches made before they are asked for.
    """
    with ThreadPoolExecutor(1, "batches") as thread:
        made = deque(thread.submit(next, batches, None) for _ in range(ahead))
        while (batch := made.popleft().result()) is not None:
            made.append(thread.submit(next, batches, None))
            yield batch
