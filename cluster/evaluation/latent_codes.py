"""Latent codes of a dataset's clips."""

from __future__ import annotations

import numpy as np

from cluster.dataset.loader import ClipReader
from cluster.dataset.manifest import Manifest
from vgan.errors import InputError
from vgan.models.pretrained import BATCH, Model


def encode_dataset(model: Model, url: str, manifest: Manifest, most: int, seed: int) -> np.ndarray:
    """Encode clips of a dataset with an autoencoder, in shuffled order without repetition.

    Args:
        model: an autoencoder.
        url: of the dataset.
        manifest: manifest of the dataset.
        most: maximum number of clips.
        seed: of the order of clips.

    Returns:
        Latent codes (N, Z) float32.

    Raises:
        InputError: fewer than two clips.
    """
    num = min(most, sum(shard.rows for shard in manifest.shards))
    if num < 2:
        raise InputError(f"a mixture needs at least two clips, but {url!r} with mixture_clips={most} has {num}")
    batches = ClipReader(url, manifest, seed=seed, batch_size=BATCH, rank=0, world_size=1).batches(consumed=0)
    parts = [model.encode(next(batches).frames.numpy()) for _ in range(-(-num // BATCH))]
    return np.concatenate(parts)[:num]
