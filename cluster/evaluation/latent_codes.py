"""Latent codes of a dataset's clips."""

from __future__ import annotations

import numpy as np

from cluster.dataset.loader import ClipReader
from cluster.dataset.manifest import Manifest
from vgan.errors import InputError
from vgan.models.pretrained import BATCH, Model


def encode_dataset(model: Model, url: str, manifest: Manifest, most: int, seed: int) -> np.ndarray:
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
