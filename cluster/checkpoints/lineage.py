"""The dataset that a checkpoint was trained on."""

from __future__ import annotations

from cluster.checkpoints.store import Checkpoint
from cluster.dataset.manifest import MANIFEST, Manifest, read_manifest
from cluster.storage.files import exists
from cluster.storage.urls import join_url
from vgan.errors import InputError
from vgan.models.config import ModelConfig
from vgan.models.pretrained import Model
from vgan.video.config import ClipSpec


def find_training_manifest(source: Checkpoint) -> Manifest | None:
    """Read the manifest of the dataset that a checkpoint was trained on.

    Returns:
        The manifest at `source.dataset_url`; None if there is no dataset any more, or one with another digest.
    """
    if not source.dataset_url or not exists(join_url(source.dataset_url, MANIFEST)):
        return None
    manifest = read_manifest(source.dataset_url)
    return manifest if manifest.digest == source.dataset_digest else None


def training_manifest(model: Model, source: Checkpoint) -> Manifest:
    """Read the manifest of the dataset that a model was trained on, at `source.dataset_url`.

    Raises:
        InputError: the dataset does not exist any more, has another digest, or does not fit the model.
    """
    manifest = find_training_manifest(source)
    if manifest is None:
        raise InputError(
            f"the dataset at {source.dataset_url!r} is removed or no longer the one of this run: "
            "to use another nevertheless, set data="
        )
    require_matching_shape(model.config, manifest.clip, source.dataset_url, "set another data=")
    return manifest


def require_matching_shape(model: ModelConfig, clip: ClipSpec, url: str, hint: str) -> None:
    """Require that a model and a dataset have clips of the same size and number of frames.

    Args:
        model: settings of the model.
        clip: shape of the dataset's clips.
        url: of the dataset, for the message.
        hint: the fix, which ends the message; {key}, {model} and {data} in it are replaced by the name of the setting
            that differs and its two values.

    Raises:
        InputError: the clips differ.
    """
    for key in ("num_frames", "size"):
        model_value, data_value = getattr(model, key), getattr(clip, key)
        if model_value != data_value:
            fix = hint.format(key=key, model=model_value, data=data_value)
            raise InputError(f"the model has {key}={model_value} but the clips of {url!r} have {data_value}: {fix}")
