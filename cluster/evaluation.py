"""Judging models by clips: what they draw and real clips, looked at on Ray and compared under one protocol."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.checkpoints import store
from cluster.checkpoints.store import Checkpoint
from cluster.dataset.manifest import MANIFEST, Manifest, read_manifest
from cluster.dataset.order import row_group_index
from cluster.dataset.shards import read_clips
from cluster.looking import Eyes, RealSet, choose, look_at_drawn, look_at_reals, search
from cluster.mixtures import codes_of, require_fit, training_set
from cluster.observability.mlflow_tracker import Tracker
from cluster.observability.tracking_config import TrackingConfig
from cluster.runtime.ray_session import ray_session, require_resources
from cluster.storage.files import exists, json_bytes, make_writable_folder, read_bytes, write_bytes
from cluster.storage.urls import join_url
from vgan.errors import InputError
from vgan.metrics.clip_statistics import REVISION, ClipStatistics, distribution_distances, from_npz, to_npz
from vgan.metrics.extractors import open_extractor
from vgan.metrics.frechet import Interval, mean_interval, protocol_name
from vgan.metrics.nearest_neighbors import is_memorized, normalize_blocks
from vgan.models import gaussian_mixture
from vgan.models.pretrained import Model
from vgan.options import option, section

EXPERIMENT = "evaluation"
MIXTURE_CLIPS = 10_000  # whose codes the baseline's mixture is fitted to, as by jobs.generate


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to judge, against what."""

    data: str = option("", "dataset whose real clips are compared with; best one that was not trained on (required)")
    checkpoint: list[str] = option([], "runs' folders, checkpoints, exported models or .t7 files to judge: [one,other]")
    samples: list[str] = option([], "datasets whose clips are judged as if they were drawn")
    out: str = option("out/evaluated", "url of the folder for results.json, table.txt and what is kept between calls")
    num: int = option(256, "clips in each set; distances compare at equal numbers alone, published ones have 2048")
    frames: int = option(0, "frames of each clip that are looked at, its first ones; 0: all")
    reference: str = option("", "name of data= in metric names, e.g. ucf101-split1; empty: its folder and digest")
    extractor: str = option(
        "", "local file of I3D's weights or of a TorchScript program, or pixels; empty: no distances"
    )
    resolution: int = option(224, "pixels a side that the extractor sees; published distances have 224")
    bf16: bool = option(False, "run I3D in bfloat16: about twice as fast, and other numbers")
    repeats: int = option(200, "resamplings behind each distance's 95 % interval")
    training: str = option("", "dataset searched for copies, where a model does not say what it was trained on")
    training_clips: int = option(20_000, "training clips that are searched for copies at most; 0: none")
    ema: bool = option(True, "draw from the moving average of the generator, where there is one")
    seed: int = option(0, "of the noise, of the real clips' choice and of the resampling")
    cache: str = option("", "url of the folder that keeps what was seen of real clips, by digest; empty: below out=")
    report: str = option("", "url of an html file: the models' card")
    transfer: str = option("", "results.json of a sweep of jobs.finetune, whose figure the card shall show")
    cpus: float = option(1.0, "CPU cores a task; as many at once as there is room for")
    gpus: float = option(0.0, "GPUs a task, 0.25 for four on one; 0 computes on CPUs")
    address: str = option("", "Ray cluster; empty: the one this job was submitted to, else a local one")
    tracking: TrackingConfig = section(TrackingConfig, "MLflow")

    def __post_init__(self) -> None:
        if not self.checkpoint and not self.samples and self.data:
            raise ValueError("nothing to judge: give checkpoint= or samples=")
        if self.num < 4 or self.repeats < 2:
            raise ValueError(f"num must be at least 4 and repeats at least 2, got {self.num} and {self.repeats}")
        if self.frames < 0 or self.frames % 8:  # copies are told by blocks of an eighth
            raise ValueError(f"frames must be 0 or a multiple of 8, got {self.frames}")
        if not 32 <= self.resolution <= 1024:
            raise ValueError(f"resolution must be in 32..1024, got {self.resolution}")
        if not 0 <= self.seed < 2**32 or self.training_clips < 0:
            got = f"got {self.seed} and {self.training_clips}"
            raise ValueError(f"seed must be in 0..2^32-1 and training_clips at least 0, {got}")
        if self.cpus <= 0 or self.gpus < 0:
            raise ValueError(f"cpus must be above 0 and gpus 0 or more, got {self.cpus} and {self.gpus}")


Ranked = tuple[tuple[int, int, float], ...]  # (drawn clip, its nearest training clip's row, their distance)


@dataclass(frozen=True)
class Subject:
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


@dataclass(frozen=True, kw_only=True)
class Judged:
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
    rows: tuple[Judged, ...]
    subjects: tuple[Subject, ...]


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
    subjects = _distinct([_subject(url, config, manifest) for url in config.checkpoint])
    reference = choose(config.data, manifest, config.num, config.seed)
    others = [_other(url, config, manifest) for url in config.samples]
    eyes = Eyes(extractor=extractor, frames=frames, cpus=config.cpus, gpus=config.gpus)
    Tracker(config.tracking.uri, config.tracking.experiment or EXPERIMENT).experiment_id()  # what cannot be used is
    make_writable_folder(config.out)  # told now, not after hours of work
    with ray_session(config.address) as alone:
        if alone:
            require_resources("a task", cpus=eyes.cpus, gpus=eyes.gpus)
        measure = Measure(config, name, reference, _seen(reference, eyes, config), eyes)
        rows = [measure.of_reference()]
        rows += [measure.of_set(chosen, title, "real") for title, chosen in _controls(config, reference, subjects)]
        rows += [measure.of_set(chosen, Path(chosen.url).name, "samples") for chosen in others]
        rows += [measure.of_model(subject) for subject in subjects]
    return Evaluation(protocol=measure.protocol(), rows=tuple(rows), subjects=subjects)


@dataclass(frozen=True)
class Measure:
    """What every row is measured by."""

    config: EvaluateConfig
    name: str  # of the reference set, as metric names spell it
    reference: RealSet
    real: ClipStatistics  # at the reference set
    eyes: Eyes

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

    def of_reference(self) -> Judged:
        """The reference set's own statistics, which those of the others are read against."""
        return self._row("real, reference", "real", self.real, {}, _lineage(self.reference))

    def of_set(self, chosen: RealSet, name: str, kind: str) -> Judged:
        """A row of real clips, or of clips that are packed like such."""
        seen = _seen(chosen, self.eyes, self.config)
        return self._row(name, kind, seen, self._distances(seen), _lineage(chosen))

    def of_model(self, subject: Subject) -> Judged:
        """A row of what a model draws."""
        codes = subject.model.codes(self.config.num, self.config.seed)
        seen = look_at_drawn(subject.model, codes, self.eyes, f"look at {subject.name}")
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
    ) -> Judged:
        metrics = found | seen.statistics(self.config.seed)
        return Judged(name=name, kind=kind, num=seen.num, metrics=metrics, spectrum=seen.spectrum(), lineage=lineage)

    def _copies(self, seen: ClipStatistics, subject: Subject) -> tuple[dict[str, Interval], Ranked, list[str]]:
        """The share of copies, (drawn clip, training row, distance) of the nearest, and what must be said of them."""
        manifest, url = subject.training, subject.training_url
        assert manifest is not None
        groups = _some_groups(manifest, self.config.training_clips, self.config.seed)
        asked = normalize_blocks(np.concatenate([seen.coarse, self.real.coarse]))
        sources = np.concatenate([np.full(seen.num, ""), self.reference.sources])
        found = search(asked, sources, url, manifest, groups, self.eyes)
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


# ---- what is judged ----------------------------------------------------------------------------------------------


def _subject(url: str, config: EvaluateConfig, manifest: Manifest) -> Subject:
    """A model that is ready to draw, and its training set if that is still there."""
    model, source = store.open_model(url, ema=config.ema)
    if model.config.kind == "future":
        raise InputError(
            f"checkpoint={url!r} draws from images, not from noise: `python -m jobs.predict` gives its errors"
        )
    if model.generator is None:
        raise InputError(f"checkpoint={url!r} holds a discriminator alone: give the generator's file")
    require_fit(model, config.data, manifest, "give another data=")
    if model.config.kind == "autoencoder" and model.mixture is None:
        if source is None:
            raise InputError(f"checkpoint={url!r} is an autoencoder without a mixture: give its run's folder")
        codes = codes_of(model, source.dataset_url, training_set(model, source), MIXTURE_CLIPS, config.seed)
        model = replace(model, mixture=gaussian_mixture.fit_mixture(codes, seed=config.seed))
    training_url, training = _training(source, config.training)
    if training is not None:
        require_fit(model, training_url, training, "give another training=")
    name = Path(url).name if source is None else f"{Path(source.url).parent.name}, step {source.step}"
    return Subject(name, source.url if source else url, model, source, training_url, training)


def _training(source: Checkpoint | None, given: str) -> tuple[str, Manifest | None]:
    """The dataset that a model was trained on: its own, wherever it is now, or of an unknown one what is given."""
    for url in filter(None, [source.dataset_url if source else "", given]):
        if source is not None and url == source.dataset_url and not exists(join_url(url, MANIFEST)):
            continue
        found = read_manifest(url)
        if source is None or found.digest == source.dataset_digest:
            return url, found
    return "", None


def _distinct(subjects: Sequence[Subject]) -> tuple[Subject, ...]:
    """The same with names that tell them apart."""
    names = [subject.name for subject in subjects]
    return tuple(
        replace(subject, name=f"{subject.name} ({place})") if names.count(subject.name) > 1 else subject
        for place, subject in enumerate(subjects, start=1)
    )


def _other(url: str, config: EvaluateConfig, manifest: Manifest) -> RealSet:
    """The clips of a set to judge, whose shape must be that of data=."""
    other = read_manifest(url)
    if (other.clip.num_frames, other.clip.size) != (manifest.clip.num_frames, manifest.clip.size):
        shapes = [f"{m.clip.num_frames} frames of {m.clip.size} px" for m in (other, manifest)]
        raise InputError(f"the clips of samples={url!r} have {shapes[0]}, those of data= {shapes[1]}")
    return choose(url, other, config.num, config.seed)


def _controls(config: EvaluateConfig, reference: RealSet, subjects: Sequence[Subject]) -> Iterator[tuple[str, RealSet]]:
    """Training clips of each model, none of them in the reference: what a model would reach that drew such clips."""
    known = {s.training.digest: (s.training_url, s.training) for s in subjects if s.training is not None}
    for digest, (url, manifest) in known.items():
        try:
            yield (
                "real, training" if len(known) == 1 else f"real, training {digest[:8]}",
                choose(url, manifest, config.num, config.seed, reference.ids),
            )
        except InputError as fault:
            print(f"no control by training clips: {fault}", flush=True)


def _some_groups(manifest: Manifest, most: int, seed: int) -> np.ndarray:
    """Row groups of `most` clips about, drawn at random; all where there are no more."""
    groups = row_group_index(manifest)
    order = np.random.default_rng(seed).permutation(len(groups))
    return groups[np.sort(order[: 1 + int(np.searchsorted(np.cumsum(groups[order, 3]), most))])]


def _seen(chosen: RealSet, eyes: Eyes, config: EvaluateConfig) -> ClipStatistics:
    """A look at real clips, kept by the digests of all that it depends on."""
    told = [REVISION, chosen.digest, eyes.frames]
    if eyes.extractor is not None:
        told += [eyes.extractor.name, eyes.extractor.digest, eyes.extractor.resolution]
    key = hashlib.sha256(json_bytes(told)).hexdigest()[:32]
    kept = join_url(config.cache or join_url(config.out, "cache"), f"{key}.npz")
    if exists(kept):
        print(f"{len(chosen.rows)} real clips of {chosen.url}: as seen before ({kept})", flush=True)
        return from_npz(read_bytes(kept))
    seen = look_at_reals(chosen, eyes, f"look at {chosen.url.rpartition('/')[2]}")
    write_bytes(kept, to_npz(seen))
    return seen


def _lineage(chosen: RealSet) -> dict[str, str]:
    return {"dataset_uri": chosen.url, "dataset_hash": chosen.manifest.digest, "set_digest": chosen.digest}
