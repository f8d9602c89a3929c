"""What the baseline draws from: the codes of a dataset's clips."""

from __future__ import annotations

import numpy as np

from cluster.checkpoints.store import Checkpoint
from cluster.dataset.loader import ClipReader
from cluster.dataset.manifest import Manifest, read_manifest
from vgan.errors import InputError
from vgan.models.pretrained import BATCH, Model


def training_set(model: Model, source: Checkpoint) -> Manifest:
    """The manifest of the dataset at `source.dataset_url`, which the model was trained on.

    Raises:
        InputError: it is gone, or another one is there now.
    """
    manifest = read_manifest(source.dataset_url)
    if manifest.digest != source.dataset_digest:
        raise InputError(
            f"the dataset at {source.dataset_url!r} is no longer the one of this run: "
            "to use it all the same, give data="
        )
    require_fit(model, source.dataset_url, manifest, "give another data=")
    return manifest


def require_fit(model: Model, url: str, manifest: Manifest, way_out: str) -> None:
    """Raise InputError unless a model's clips have the shape of a dataset's."""
    for key in ("num_frames", "size"):
        ours, theirs = getattr(model.config, key), getattr(manifest.clip, key)
        if ours != theirs:
            raise InputError(f"the model has {key}={ours} but the clips of {url!r} have {theirs}: {way_out}")


def codes_of(model: Model, url: str, manifest: Manifest, most: int, seed: int) -> np.ndarray:
    """An autoencoder's codes (N, Z) float32 of clips in shuffled order, each once, `most` of them at most.

    Raises:
        InputError: fewer than two.
    """
    num = min(most, sum(shard.rows for shard in manifest.shards))
    if num < 2:
        raise InputError(f"a mixture needs two clips at least, and {url!r} and mixture_clips={most} give {num}")
    batches = ClipReader(url, manifest, seed=seed, batch_size=BATCH, rank=0, world_size=1).batches(consumed=0)
    parts = [model.encode(next(batches).frames.numpy()) for _ in range(-(-num // BATCH))]
    return np.concatenate(parts)[:num]
