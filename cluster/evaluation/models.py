"""The models of an evaluation, ready to draw clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.checkpoints import store
from cluster.checkpoints.lineage import require_matching_shape, training_manifest
from cluster.checkpoints.store import Checkpoint
from cluster.dataset.manifest import MANIFEST, Manifest, read_manifest
from cluster.evaluation.config import MIXTURE_CLIPS, EvaluateConfig
from cluster.evaluation.latent_codes import encode_dataset
from cluster.evaluation.reference_set import ReferenceSet
from cluster.storage.files import exists
from cluster.storage.urls import join_url
from vgan.errors import InputError
from vgan.models import gaussian_mixture
from vgan.models.pretrained import Model


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to judge."""

    name: str
    url: str
    model: Model
    source: Checkpoint | None
    training_url: str  # "" where it is not known, or no longer what it was
    training: Manifest | None

    def lineage(self) -> dict[str, str]:
        """Where its weights are from, by tag."""
        known = self.source
        told = {"checkpoint_uri": self.url}
        if known is not None:
            told |= {"training_run_id": known.mlflow_run_id, "training_dataset_uri": known.dataset_url}
            told |= {"training_dataset_hash": known.dataset_digest, "step": str(known.step)}
        return told

    def origin(self) -> dict[str, str]:
        """What its training set came from, for people: counts and settings, where it is still there."""
        if self.training is None:
            return {}
        counts = self.training.counts
        told = {
            f"training {key}": str(counts[key]) for key in ("sources", "accepted", "rejected", "clips") if key in counts
        }
        return told | {"training git commit": self.training.git_commit, "training set made": self.training.created}

    def health(self) -> dict[str, float]:
        """What was measured of its training just before the checkpoint."""
        return {} if self.source is None else store.checkpoint_metrics(self.source.url)


def open_evaluated_model(url: str, config: EvaluateConfig, manifest: Manifest) -> EvaluatedModel:
    """A model that is ready to draw, and its training set if that is still there."""
    model, source = store.open_model(url, ema=config.ema)
    if model.config.kind == "future":
        raise InputError(
            f"checkpoint={url!r} draws from images, not from noise: `python -m jobs.predict` gives its errors"
        )
    if model.generator is None:
        raise InputError(f"checkpoint={url!r} holds a discriminator alone: give the generator's file")
    require_matching_shape(model, config.data, manifest, "give another data=")
    if model.config.kind == "autoencoder" and model.mixture is None:
        if source is None:
            raise InputError(f"checkpoint={url!r} is an autoencoder without a mixture: give its run's folder")
        codes = encode_dataset(model, source.dataset_url, training_manifest(model, source), MIXTURE_CLIPS, config.seed)
        model = replace(model, mixture=gaussian_mixture.fit_mixture(codes, seed=config.seed))
    training_url, training = _training_dataset(source, config.training)
    if training is not None:
        require_matching_shape(model, training_url, training, "give another training=")
    name = Path(url).name if source is None else f"{Path(source.url).parent.name}, step {source.step}"
    return EvaluatedModel(name, source.url if source else url, model, source, training_url, training)


def _training_dataset(source: Checkpoint | None, given: str) -> tuple[str, Manifest | None]:
    """The dataset that a model was trained on: its own, wherever it is now, or of an unknown one what is given."""
    for url in filter(None, [source.dataset_url if source else "", given]):
        if source is not None and url == source.dataset_url and not exists(join_url(url, MANIFEST)):
            continue
        found = read_manifest(url)
        if source is None or found.digest == source.dataset_digest:
            return url, found
    return "", None


def with_distinct_names(subjects: Sequence[EvaluatedModel]) -> tuple[EvaluatedModel, ...]:
    """The same with names that tell them apart."""
    names = [subject.name for subject in subjects]
    return tuple(
        replace(subject, name=f"{subject.name} ({place})") if names.count(subject.name) > 1 else subject
        for place, subject in enumerate(subjects, start=1)
    )


def model_lineage(chosen: ReferenceSet) -> dict[str, str]:
    return {"dataset_uri": chosen.url, "dataset_hash": chosen.manifest.digest, "set_digest": chosen.digest}
