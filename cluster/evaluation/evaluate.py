"""Evaluation of models: generated and real clips compared under one protocol, with features computed on Ray."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.dataset.manifest import Manifest, read_manifest
from cluster.dataset.order import row_group_index
from cluster.dataset.shards import read_clips
from cluster.evaluation.clip_features import ExtractionConfig, extract_generated, extract_real, find_nearest
from cluster.evaluation.config import EXPERIMENT, EvaluateConfig
from cluster.evaluation.models import EvaluatedModel, model_lineage, open_evaluated_model, with_distinct_names
from cluster.evaluation.reference_set import ReferenceSet, sample_reference_set
from cluster.observability.mlflow_tracker import Tracker
from cluster.runtime.ray_session import ray_session, require_resources
from cluster.storage.files import exists, json_bytes, make_writable_folder, read_bytes, write_bytes
from cluster.storage.urls import join_url
from vgan.errors import InputError
from vgan.metrics.clip_statistics import REVISION, ClipStatistics, distribution_distances, from_npz, to_npz
from vgan.metrics.extractors import open_extractor
from vgan.metrics.frechet import Interval, mean_interval, protocol_name
from vgan.metrics.nearest_neighbors import is_memorized, normalize_blocks

Ranked = tuple[tuple[int, int, float], ...]  # (generated clip, row of its nearest training clip, distance)


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """One row of the results."""

    name: str
    kind: str  # kind of the model; "real" for a control, "samples" for a set of clips
    num: int
    metrics: dict[str, Interval]  # by name, which contains the protocol
    spectrum: list[float]  # mean shares of the temporal power at 1, 2, ... cycles per clip
    lineage: dict[str, str]
    remark: str = ""
    copies: Ranked = ()  # most likely copy first


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results of an evaluation, with its protocol and models."""

    protocol: dict[str, Any]
    rows: tuple[EvaluationRow, ...]
    subjects: tuple[EvaluatedModel, ...]


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Evaluate every model and set of clips.

    Raises:
        InputError: a model or dataset is missing, too small or of another shape.
    """
    manifest = read_manifest(config.data)
    frames = config.num_frames or manifest.clip.num_frames
    if frames > manifest.clip.num_frames:
        raise InputError(
            f"num_frames={frames} exceeds the {manifest.clip.num_frames} frames per clip of {config.data!r}"
        )
    name = config.reference or f"{re.sub(r'[^A-Za-z0-9.-]+', '-', Path(config.data).name)}-{manifest.digest[:8]}"
    protocol_name("fvd", num=1, extractor="x", resolution=1, reference=name, num_frames=1)  # rejects ambiguous names
    extractor = None
    if config.extractor:
        size = {"resolution": config.resolution, "size": manifest.clip.size}
        extractor = open_extractor(config.extractor, bf16=config.bf16, **size)
    subjects = with_distinct_names([open_evaluated_model(url, config, manifest) for url in config.checkpoint])
    reference = sample_reference_set(config.data, manifest, config.num_clips, config.seed)
    others = [_other(url, config, manifest) for url in config.sample_datasets]
    eyes = ExtractionConfig(extractor=extractor, frames=frames, cpus=config.cpus, gpus=config.gpus)
    Tracker(config.tracking.uri, config.tracking.experiment or EXPERIMENT).experiment_id()  # these two fail
    make_writable_folder(config.out)  # now if unusable, not after hours of work
    with ray_session(config.address) as is_local:
        if is_local:
            require_resources("a task", cpus=eyes.cpus, gpus=eyes.gpus)
        measure = Evaluator(config, name, reference, _statistics(reference, eyes, config), eyes)
        rows = [measure.of_reference()]
        rows += [measure.of_set(chosen, title, "real") for title, chosen in _controls(config, reference, subjects)]
        rows += [measure.of_set(chosen, Path(chosen.url).name, "samples") for chosen in others]
        rows += [measure.of_model(subject) for subject in subjects]
    return Evaluation(protocol=measure.protocol(), rows=tuple(rows), subjects=subjects)


@dataclass(frozen=True)
class Evaluator:
    """Measurement of rows against one reference set."""

    config: EvaluateConfig
    name: str  # of the reference set in metric names
    reference: ReferenceSet
    real: ClipStatistics  # statistics of the reference set
    eyes: ExtractionConfig

    def protocol(self) -> dict[str, Any]:
        """Return the settings, besides the metric name, that must be equal for two values to be comparable."""
        extractor, manifest = self.eyes.extractor, self.reference.manifest
        return {
            "num": self.config.num_clips,
            "num_frames": self.eyes.frames,
            "size": manifest.clip.size,
            "fps": manifest.clip.fps,
            "seed": self.config.seed,
            "repeats": self.config.bootstrap_samples,
            "reference": self.name,
            "reference_set_digest": self.reference.digest,
            "reference_classes": self.reference.num_classes,
            "reference_videos": self.reference.num_sources,
            "reference_order": "seeded, in turns over classes and over the videos of each",
            "dataset_uri": self.reference.url,
            "dataset_digest": manifest.digest,
            "dataset_codec": manifest.config.get("codec"),
            "extractor": extractor and extractor.name,
            "extractor_digest": extractor and extractor.digest,
            "resolution": extractor and extractor.resolution,
            "resize": "bilinear, pixel centres at halves, no antialiasing",
            "covariance": "unbiased",
            "num_features": self.real.features.shape[1],
        }

    def of_reference(self) -> EvaluationRow:
        """Compute the row of the reference set, to compare the statistics of other rows with."""
        return self._row("real, reference", "real", self.real, {}, model_lineage(self.reference))

    def of_set(self, chosen: ReferenceSet, name: str, kind: str) -> EvaluationRow:
        """Compute the row of a set of stored clips, real or generated."""
        look = _statistics(chosen, self.eyes, self.config)
        return self._row(name, kind, look, self._distances(look), model_lineage(chosen))

    def of_model(self, subject: EvaluatedModel) -> EvaluationRow:
        """Compute the row of clips generated by a model, with the search for copies of training clips."""
        codes = subject.model.sample_latents(self.config.num_clips, self.config.seed)
        look = extract_generated(subject.model, codes, self.eyes, f"features of {subject.name}")
        metrics, remarks = self._distances(look), list[str]()
        ranked: Ranked = ()
        if subject.training is None:
            remarks.append("not searched for copies: the training set is unknown, missing or changed")
        elif self.config.max_training_clips:
            shares, ranked, copy_notes = self._copies(look, subject)
            metrics |= shares
            remarks += copy_notes
        row = self._row(subject.name, subject.model.config.architecture, look, metrics, subject.lineage())
        return replace(row, remark="; ".join(remarks), copies=ranked)

    def _distances(self, look: ClipStatistics) -> dict[str, Interval]:
        if self.eyes.extractor is None:
            return {}
        settings = {"seed": self.config.seed, "repeats": self.config.bootstrap_samples}
        return distribution_distances(self.real, look, self.eyes.extractor, self.name, **settings)

    def _row(
        self, name: str, kind: str, look: ClipStatistics, values: dict[str, Interval], lineage: dict[str, str]
    ) -> EvaluationRow:
        metrics = values | look.statistics(self.config.seed)
        return EvaluationRow(
            name=name, kind=kind, num=look.num, metrics=metrics, spectrum=look.spectrum(), lineage=lineage
        )

    def _copies(self, look: ClipStatistics, subject: EvaluatedModel) -> tuple[dict[str, Interval], Ranked, list[str]]:
        """Return the share of copies, (generated clip, training row, distance) of the nearest clips, and notes."""
        manifest, url = subject.training, subject.training_url
        assert manifest is not None
        groups = _sample_groups(manifest, self.config.max_training_clips, self.config.seed)
        queries = normalize_blocks(np.concatenate([look.coarse, self.real.coarse]))
        sources = np.concatenate([np.full(look.num, ""), self.reference.sources])
        nearest = find_nearest(queries, sources, url, manifest, groups, self.eyes)
        generated, real = nearest.ratio[: look.num], nearest.ratio[look.num :]
        order = np.argsort(generated, kind="stable")
        ranked = tuple((int(i), int(nearest.row[i]), float(nearest.distance[i])) for i in order)
        copy_notes = []
        training_videos = read_clips(url, manifest, ["source_id"])["source_id"].unique().to_pylist()
        shared = len(set(training_videos) & set(self.reference.sources))
        if shared:
            copy_notes.append(
                f"{shared} of the reference's {self.reference.num_sources} videos are in the training set"
            )
        if not np.isfinite(nearest.ratio).all():
            return {}, ranked, [*copy_notes, "too few training videos for nearest-neighbor ratios: copies not counted"]
        protocol = {"num": look.num, "resolution": look.shape[1], "num_frames": look.shape[0]}
        name = protocol_name(
            "copies", extractor="patterns8", reference=f"{manifest.digest[:8]}-{groups[:, 3].sum()}clips", **protocol
        )
        return {name: mean_interval(is_memorized(generated, real), self.config.seed)}, ranked, copy_notes


def _other(url: str, config: EvaluateConfig, manifest: Manifest) -> ReferenceSet:
    """Select clips of a set to evaluate, whose shape must equal that of data=."""
    other = read_manifest(url)
    if (other.clip.num_frames, other.clip.size) != (manifest.clip.num_frames, manifest.clip.size):
        shapes = [f"{m.clip.num_frames} frames of {m.clip.size} px" for m in (other, manifest)]
        raise InputError(f"clips of sample_datasets={url!r} have {shapes[0]}, those of data= have {shapes[1]}")
    return sample_reference_set(url, other, config.num_clips, config.seed)


def _controls(
    config: EvaluateConfig, reference: ReferenceSet, subjects: Sequence[EvaluatedModel]
) -> Iterator[tuple[str, ReferenceSet]]:
    """Yield training clips of each model outside the reference: the scores of a generator that matched its data."""
    training_sets = {s.training.digest: (s.training_url, s.training) for s in subjects if s.training is not None}
    for digest, (url, manifest) in training_sets.items():
        try:
            yield (
                "real, training" if len(training_sets) == 1 else f"real, training {digest[:8]}",
                sample_reference_set(url, manifest, config.num_clips, config.seed, reference.ids),
            )
        except InputError as error:
            print(f"no control row of training clips: {error}", flush=True)


def _sample_groups(manifest: Manifest, num: int, seed: int) -> np.ndarray:
    """Sample row groups at random with about `num` clips in total; all groups if there are fewer clips."""
    groups = row_group_index(manifest)
    order = np.random.default_rng(seed).permutation(len(groups))
    return groups[np.sort(order[: 1 + int(np.searchsorted(np.cumsum(groups[order, 3]), num))])]


def _statistics(chosen: ReferenceSet, eyes: ExtractionConfig, config: EvaluateConfig) -> ClipStatistics:
    """Compute the statistics of real clips, cached under a digest of everything they depend on."""
    parts = [REVISION, chosen.digest, eyes.frames]
    if eyes.extractor is not None:
        parts += [eyes.extractor.name, eyes.extractor.digest, eyes.extractor.resolution]
    key = hashlib.sha256(json_bytes(parts)).hexdigest()[:32]
    cached = join_url(config.cache or join_url(config.out, "cache"), f"{key}.npz")
    if exists(cached):
        print(f"{len(chosen.rows)} real clips of {chosen.url}: statistics from the cache ({cached})", flush=True)
        return from_npz(read_bytes(cached))
    look = extract_real(chosen, eyes, f"features of {chosen.url.rpartition('/')[2]}")
    write_bytes(cached, to_npz(look))
    return look
