"""Real clips to compare with, drawn evenly over classes and videos."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from cluster.dataset.manifest import Manifest
from cluster.dataset.shards import read_clips
from vgan.errors import InputError
from vgan.metrics.sampling import balanced_order
from vgan.transfer.label_subsets import ids_digest


@dataclass(frozen=True, kw_only=True)
class ReferenceSet:
    """Real clips, sampled evenly over the classes and videos of a dataset."""

    url: str
    manifest: Manifest
    rows: np.ndarray  # (N,) int64, indices in stored order, ascending
    ids: tuple[str, ...]
    sources: np.ndarray  # (N,) str
    num_classes: int
    num_sources: int

    @property
    def digest(self) -> str:
        """Digest of the dataset and the ids of the clips."""
        return ids_digest([self.manifest.digest, *self.ids])


def sample_reference_set(
    url: str, manifest: Manifest, num: int, seed: int, without: Collection[str] = ()
) -> ReferenceSet:
    """Select `num` clips of a dataset in `balanced_order`, except those whose ids are in `without`.

    Raises:
        InputError: fewer clips are available.
    """
    columns = ["clip_id", "source_id", "label"]
    table = {key: np.array(values, object) for key, values in read_clips(url, manifest, columns).to_pydict().items()}
    order = balanced_order(list(table["label"]), list(table["source_id"]), seed)
    excluded = set(without)
    rows = np.sort([row for row in order if table["clip_id"][row] not in excluded][:num]).astype(np.int64)
    if len(rows) < num:
        raise InputError(
            f"num_clips={num} clips of {url!r} requested, but only {len(rows)} are available: give a smaller num_clips="
        )
    sources = table["source_id"][rows].astype(str)
    return ReferenceSet(
        url=url,
        manifest=manifest,
        rows=rows,
        ids=tuple(table["clip_id"][rows]),
        sources=sources,
        num_classes=len({label for label in table["label"][rows] if label is not None}),
        num_sources=len(set(sources)),
    )
