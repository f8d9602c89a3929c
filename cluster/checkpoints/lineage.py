"""The dataset that a checkpoint was trained on."""

from __future__ import annotations

from cluster.checkpoints.store import Checkpoint
from cluster.dataset.manifest import Manifest, read_manifest
from vgan.errors import InputError
from vgan.models.pretrained import Model


def training_manifest(model: Model, source: Checkpoint) -> Manifest:
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
    require_matching_shape(model, source.dataset_url, manifest, "give another data=")
    return manifest


def require_matching_shape(model: Model, url: str, manifest: Manifest, way_out: str) -> None:
    """Raise InputError unless a model's clips have the shape of a dataset's."""
    for key in ("num_frames", "size"):
        ours, theirs = getattr(model.config, key), getattr(manifest.clip, key)
        if ours != theirs:
            raise InputError(f"the model has {key}={ours} but the clips of {url!r} have {theirs}: {way_out}")
