"""The dataset that a checkpoint was trained on."""

from __future__ import annotations

from cluster.checkpoints.store import Checkpoint
from cluster.dataset.manifest import Manifest, read_manifest
from vgan.errors import InputError
from vgan.models.pretrained import Model


def training_manifest(model: Model, source: Checkpoint) -> Manifest:
    """Read the manifest of the dataset that a model was trained on, at `source.dataset_url`.

    Raises:
        InputError: the dataset does not exist any more, has another digest, or does not fit the model.
    """
    manifest = read_manifest(source.dataset_url)
    if manifest.digest != source.dataset_digest:
        raise InputError(
            f"the dataset at {source.dataset_url!r} is no longer the one of this run: to use it nevertheless, set data="
        )
    require_matching_shape(model, source.dataset_url, manifest, "set another data=")
    return manifest


def require_matching_shape(model: Model, url: str, manifest: Manifest, way_out: str) -> None:
    """Require that a model and a dataset have clips of the same size and number of frames.

    Args:
        model: the model.
        url: of the dataset, for the message.
        manifest: manifest of the dataset.
        way_out: remedy that ends the message.

    Raises:
        InputError: the clips differ.
    """
    for key in ("num_frames", "size"):
        model_value, data_value = getattr(model.config, key), getattr(manifest.clip, key)
        if model_value != data_value:
            raise InputError(f"the model has {key}={model_value} but the clips of {url!r} have {data_value}: {way_out}")
