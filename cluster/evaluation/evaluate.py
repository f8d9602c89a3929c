"""Judging models by clips: what they draw and real clips, looked at on Ray and compared under one protocol."""

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

Ranked = tuple[tuple[int, int, float], ...]  # (drawn clip, its nearest training clip's row, their distance)


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """One row of the result."""

    name: str
    kind: str  # of the model; "real" of a control, "samples" of a set
    num: int
    metrics: dict[str, Interval]  # by names that carry the protocol
    spectrum: list[float]  # mean shares of the temporal power at 1, 2, ... cycles a clip
    lineage: dict[str, str]
    remark: str = ""
    copies: Ranked = ()  # the likeliest copy first


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything that was found, and by what."""

    protocol: dict[str, Any]
    rows: tuple[EvaluationRow, ...]
    subjects: tuple[EvaluatedModel, ...]


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Judge every model and set.

    Raises:
        InputError: something to judge or to compare with is missing, too small or of another shape.
    """
    manifest = read_manifest(config.data)
    frames = config.frames or manifest.clip.num_frames
    if frames > manifest.clip.num_frames:
        raise InputError(f"frames={frames} are more than the {manifest.clip.num_frames} of {config.data!r}")
    name = config.reference or f"{re.sub(r'[^A-Za-z0-9.-]+', '-', Path(config.data).name)}-{manifest.digest[:8]}"
    protocol_name("fvd", num=1, extractor="x", resolution=1, reference=name, num_frames=1)  # refuses names that blur
    extractor = None
    if config.extractor:
        size = {"resolution": config.resolution, "size": manifest.clip.size}
        extractor = open_extractor(config.extractor, bf16=config.bf16, **size)
    subjects = with_distinct_names([open_evaluated_model(url, config, manifest) for url in config.checkpoint])
    reference = sample_reference_set(config.data, manifest, config.num, config.seed)
    others = [_other(url, config, manifest) for url in config.samples]
    eyes = ExtractionConfig(extractor=extractor, frames=frames, cpus=config.cpus, gpus=config.gpus)
    Tracker(config.tracking.uri, config.tracking.experiment or EXPERIMENT).experiment_id()  # what cannot be used is
    make_writable_folder(config.out)  # told now, not after hours of work
    with ray_session(config.address) as alone:
        if alone:
            require_resources("a task", cpus=eyes.cpus, gpus=eyes.gpus)
        measure = Evaluator(config, name, reference, _seen(reference, eyes, config), eyes)
        rows = [measure.of_reference()]
        rows += [measure.of_set(chosen, title, "real") for title, chosen in _controls(config, reference, subjects)]
        rows += [measure.of_set(chosen, Path(chosen.url).name, "samples") for chosen in others]
        rows += [measure.of_model(subject) for subject in subjects]
    return Evaluation(protocol=measure.protocol(), rows=tuple(rows), subjects=subjects)


@dataclass(frozen=True)
class Evaluator:
    """What every row is measured by."""

    config: EvaluateConfig
    name: str  # of the reference set, as metric names spell it
    reference: ReferenceSet
    real: ClipStatistics  # at the reference set
    eyes: ExtractionConfig

    def protocol(self) -> dict[str, Any]:
        """All that must be the same for two numbers to compare, beside their names."""
        extractor, manifest = self.eyes.extractor, self.reference.manifest
        return {
            "num": self.config.num,
            "num_frames": self.eyes.frames,
            "size": manifest.clip.size,
            "fps": manifest.clip.fps,
            "seed": self.config.seed,
            "repeats": self.config.repeats,
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
        """The reference set's own statistics, which those of the others are read against."""
        return self._row("real, reference", "real", self.real, {}, model_lineage(self.reference))

    def of_set(self, chosen: ReferenceSet, name: str, kind: str) -> EvaluationRow:
        """A row of real clips, or of clips that are packed like such."""
        seen = _seen(chosen, self.eyes, self.config)
        return self._row(name, kind, seen, self._distances(seen), model_lineage(chosen))

    def of_model(self, subject: EvaluatedModel) -> EvaluationRow:
        """A row of what a model draws."""
        codes = subject.model.codes(self.config.num, self.config.seed)
        seen = extract_generated(subject.model, codes, self.eyes, f"look at {subject.name}")
        metrics, remarks = self._distances(seen), list[str]()
        ranked: Ranked = ()
        if subject.training is None:
            remarks.append("its training set is not known, or not there as it was: not searched for copies")
        elif self.config.training_clips:
            found, ranked, said = self._copies(seen, subject)
            metrics |= found
            remarks += said
        row = self._row(subject.name, subject.model.config.kind, seen, metrics, subject.lineage())
        return replace(row, remark="; ".join(remarks), copies=ranked)

    def _distances(self, seen: ClipStatistics) -> dict[str, Interval]:
        if self.eyes.extractor is None:
            return {}
        settings = {"seed": self.config.seed, "repeats": self.config.repeats}
        return distribution_distances(self.real, seen, self.eyes.extractor, self.name, **settings)

    def _row(
        self, name: str, kind: str, seen: ClipStatistics, found: dict[str, Interval], lineage: dict[str, str]
    ) -> EvaluationRow:
        metrics = found | seen.statistics(self.config.seed)
        return EvaluationRow(
            name=name, kind=kind, num=seen.num, metrics=metrics, spectrum=seen.spectrum(), lineage=lineage
        )

    def _copies(self, seen: ClipStatistics, subject: EvaluatedModel) -> tuple[dict[str, Interval], Ranked, list[str]]:
        """The share of copies, (drawn clip, training row, distance) of the nearest, and what must be said of them."""
        manifest, url = subject.training, subject.training_url
        assert manifest is not None
        groups = _some_groups(manifest, self.config.training_clips, self.config.seed)
        asked = normalize_blocks(np.concatenate([seen.coarse, self.real.coarse]))
        sources = np.concatenate([np.full(seen.num, ""), self.reference.sources])
        found = find_nearest(asked, sources, url, manifest, groups, self.eyes)
        drawn, unseen = found.ratio[: seen.num], found.ratio[seen.num :]
        order = np.argsort(drawn, kind="stable")
        ranked = tuple((int(i), int(found.row[i]), float(found.distance[i])) for i in order)
        said = []
        known = read_clips(url, manifest, ["source_id"])["source_id"].unique().to_pylist()
        shared = len(set(known) & set(self.reference.sources))
        if shared:
            said.append(f"{shared} of the reference's {self.reference.num_sources} videos were trained on")
        if not np.isfinite(found.ratio).all():
            return {}, ranked, [*said, "too few training videos to tell what is near: copies are not counted"]
        protocol = {"num": seen.num, "resolution": seen.shape[1], "num_frames": seen.shape[0]}
        name = protocol_name(
            "copies", extractor="patterns8", reference=f"{manifest.digest[:8]}-{groups[:, 3].sum()}clips", **protocol
        )
        return {name: mean_interval(is_memorized(drawn, unseen), self.config.seed)}, ranked, said


def _other(url: str, config: EvaluateConfig, manifest: Manifest) -> ReferenceSet:
    """The clips of a set to judge, whose shape must be that of data=."""
    other = read_manifest(url)
    if (other.clip.num_frames, other.clip.size) != (manifest.clip.num_frames, manifest.clip.size):
        shapes = [f"{m.clip.num_frames} frames of {m.clip.size} px" for m in (other, manifest)]
        raise InputError(f"the clips of samples={url!r} have {shapes[0]}, those of data= {shapes[1]}")
    return sample_reference_set(url, other, config.num, config.seed)


def _controls(
    config: EvaluateConfig, reference: ReferenceSet, subjects: Sequence[EvaluatedModel]
) -> Iterator[tuple[str, ReferenceSet]]:
    """Training clips of each model, none of them in the reference: what a model would reach that drew such clips."""
    known = {s.training.digest: (s.training_url, s.training) for s in subjects if s.training is not None}
    for digest, (url, manifest) in known.items():
        try:
            yield (
                "real, training" if len(known) == 1 else f"real, training {digest[:8]}",
                sample_reference_set(url, manifest, config.num, config.seed, reference.ids),
            )
        except InputError as fault:
            print(f"no control by training clips: {fault}", flush=True)


def _some_groups(manifest: Manifest, most: int, seed: int) -> np.ndarray:
    """Row groups of `most` clips about, drawn at random; all where there are no more."""
    groups = row_group_index(manifest)
    order = np.random.default_rng(seed).permutation(len(groups))
    return groups[np.sort(order[: 1 + int(np.searchsorted(np.cumsum(groups[order, 3]), most))])]


def _seen(chosen: ReferenceSet, eyes: ExtractionConfig, config: EvaluateConfig) -> ClipStatistics:
    """A look at real clips, kept by the digests of all that it depends on."""
    told = [REVISION, chosen.digest, eyes.frames]
    if eyes.extractor is not None:
        told += [eyes.extractor.name, eyes.extractor.digest, eyes.extractor.resolution]
    key = hashlib.sha256(json_bytes(told)).hexdigest()[:32]
    kept = join_url(config.cache or join_url(config.out, "cache"), f"{key}.npz")
    if exists(kept):
        print(f"{len(chosen.rows)} real clips of {chosen.url}: as seen before ({kept})", flush=True)
        return from_npz(read_bytes(kept))
    seen = extract_real(chosen, eyes, f"look at {chosen.url.rpartition('/')[2]}")
    write_bytes(kept, to_npz(seen))
    return seen
