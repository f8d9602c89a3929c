"""The models of an evaluation, ready to draw clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.checkpoints import store
from cluster.checkpoints.lineage import find_training_manifest, require_matching_shape, training_manifest
from cluster.checkpoints.store import Checkpoint
from cluster.dataset.manifest import Manifest, read_manifest
from cluster.evaluation.config import MIXTURE_CLIPS, EvaluateConfig
from cluster.evaluation.latent_codes import encode_dataset
from cluster.evaluation.reference_set import ReferenceSet
from vgan.errors import InputError
from vgan.models import gaussian_mixture
from vgan.models.pretrained import Model


@dataclass(frozen=True)
class EvaluatedModel:
    """Model to evaluate."""

    name: str
    url: str
    model: Model
    source: Checkpoint | None
    training_url: str  # "" if unknown or changed since the training
    training: Manifest | None

    def lineage(self) -> dict[str, str]:
        """Return the origin of the weights as MLflow tags."""
        source = self.source
        tags = {"checkpoint_uri": self.url}
        if source is not None:
            tags |= {"training_run_id": source.mlflow_run_id, "training_dataset_uri": source.dataset_url}
            tags |= {"training_dataset_hash": source.dataset_digest, "step": str(source.step)}
        return tags

    def origin(self) -> dict[str, str]:
        """Return counts and origin of the training set for the model card; empty if it is not available."""
        if self.training is None:
            return {}
        counts = self.training.counts
        fields = {
            f"training {key}": str(counts[key]) for key in ("sources", "accepted", "rejected", "clips") if key in counts
        }
        return fields | {"training git commit": self.training.git_commit, "training set made": self.training.created}

    def health(self) -> dict[str, float]:
        """Return the training metrics logged last before the checkpoint."""
        return {} if self.source is None else store.checkpoint_metrics(self.source.url)


def open_evaluated_model(url: str, config: EvaluateConfig, manifest: Manifest) -> EvaluatedModel:
    """Open a model for generation, with its training set if that is available."""
    model, source = store.open_model(url, ema=config.ema)
    if model.config.architecture == "future":
        raise InputError(
            f"checkpoint={url!r} generates from images, not from noise: evaluate it with `python -m jobs.predict`"
        )
    if model.generator is None:
        raise InputError(f"checkpoint={url!r} holds only a discriminator: give the generator's file")
    require_matching_shape(model.config, manifest.clip, config.data, "set another data=")
    if model.config.architecture == "autoencoder" and model.mixture is None:
        if source is None:
            raise InputError(f"checkpoint={url!r} is an autoencoder without a mixture: give its run folder")
        codes = encode_dataset(model, source.dataset_url, training_manifest(model, source), MIXTURE_CLIPS, config.seed)
        model = replace(model, mixture=gaussian_mixture.fit_mixture(codes, seed=config.seed))
    training_url, training = _training_dataset(source, config.training_data)
    if training is not None:
        require_matching_shape(model.config, training.clip, training_url, "set another training_data=")
    name = Path(url).name if source is None else f"{Path(source.url).parent.name}, step {source.step}"
    return EvaluatedModel(name, source.url if source else url, model, source, training_url, training)


def _training_dataset(source: Checkpoint | None, fallback: str) -> tuple[str, Manifest | None]:
    """Find the training set of a model: the recorded one, `fallback` if it moved (digests must match) or is unknown."""
    if source is not None and (training := find_training_manifest(source)):
        return source.dataset_url, training
    if fallback and (source is None or fallback != source.dataset_url):
        manifest = read_manifest(fallback)
        if source is None or manifest.digest == source.dataset_digest:
            return fallback, manifest
    return "", None


def with_distinct_names(subjects: Sequence[EvaluatedModel]) -> tuple[EvaluatedModel, ...]:
    """Make the names of subjects unique by appending positions to equal ones."""
    names = [subject.name for subject in subjects]
    return tuple(
        replace(subject, name=f"{subject.name} ({position})") if names.count(subject.name) > 1 else subject
        for position, subject in enumerate(subjects, start=1)
    )


def model_lineage(chosen: ReferenceSet) -> dict[str, str]:
    """Return the MLflow tags that name a set of real clips: its dataset and digests."""
    return {"dataset_uri": chosen.url, "dataset_hash": chosen.manifest.digest, "set_digest": chosen.digest}
