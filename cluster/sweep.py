"""The label-fraction sweep: an MLflow parent run, a child run per (init, fraction, seed, split), in parallel on Ray."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from cluster import checkpoints, runs, storage
from cluster.progress import progress_bar
from cluster.session import ray_session
from cluster.shards import Manifest
from cluster.sweep_record import Child, log_child, log_curves, log_results
from cluster.tracking import Tracker, TrackingConfig
from cluster.transfer import LabelledClips, dataset_url, load_split, prepare_labelled
from vgan.config import (
    ClipSpec,
    FinetuneConfig,
    GateConfig,
    ModelConfig,
    ScreenConfig,
    StabilizeConfig,
    VideoConfig,
    check_choice,
    option,
    section,
)
from vgan.errors import BadInput
from vgan.models.classifier import Classifier
from vgan.transfer.finetune import FinetuneResult, finetune
from vgan.transfer.fractions import FRACTIONS, subset
from vgan.transfer.ucf101 import read_split

INITS = ("vgan", "untrained", "random")


def _labelled_video() -> VideoConfig:
    """One clip a video, kept even where its camera cannot be followed, as the original did for UCF101.

    A labelled video is never turned away for what it shows: the protocol counts it.
    """
    return VideoConfig(
        clip=ClipSpec(max_per_video=1),
        screen=ScreenConfig(min_contrast=0, max_frozen=0, min_activity=0),
        stabilize=StabilizeConfig(keep_failed=True),
        gates=GateConfig(off=["still", "restless", "near_duplicate"]),
    )


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """One sweep over label fractions."""

    ucf101: str = option("", "folder that holds UCF-101/ and ucfTrainTestlist/ (required)")
    checkpoint: str = option("", "a GAN run's folder or checkpoint, for init vgan; random takes its network's size")
    out: str = option("out/finetune", "folder for the labelled clips and the results")
    name: str = option("sweep", "name of the sweep; the same name in the same folder continues")
    dataset: str = option("ucf101", "name of the labelled set in metric names")
    inits: list[str] = option(
        ["vgan", "untrained", "random"],
        "vgan: the trained GAN's trunk; untrained: weights as GAN training starts with; random: PyTorch's default",
    )
    fractions: list[float] = option(list(FRACTIONS), "shares of each class's training clips, nested")
    seeds: list[int] = option([0, 1], "each draws its own subsets, order and head")
    splits: list[int] = option([1], "official splits, 1 to 3")
    seed: int = option(0, "of the clips' packing order")
    use_gpu: bool = option(False, "one GPU a run; otherwise one CPU core")
    address: str = option("", "Ray cluster; empty: the one this job was submitted to, else a local one")
    finetune: FinetuneConfig = section(FinetuneConfig, "optimization")
    model: ModelConfig = section(ModelConfig, "the network where no checkpoint is given")
    video: VideoConfig = section(_labelled_video, "video to clips")
    tracking: TrackingConfig = section(TrackingConfig, "MLflow")

    def __post_init__(self) -> None:
        for init in self.inits:
            check_choice("inits", init, INITS)
        if any(not 0 < f <= 1 for f in self.fractions):
            raise ValueError(f"fractions must be above 0 and at most 1, got {self.fractions}")
        if any(s not in (1, 2, 3) for s in self.splits):
            raise ValueError(f"splits must be among 1, 2, 3, got {self.splits}")
        for key in ("inits", "fractions", "seeds", "splits"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise ValueError(f"{key} must name each value once, got {getattr(self, key)}")
        if not (self.inits and self.fractions and self.seeds and self.splits):
            raise ValueError("inits, fractions, seeds and splits must each name at least one value")
        runs.check_name(self.name)


def sweep(config: SweepConfig) -> list[dict[str, Any]]:
    """Run every child that has no result yet, and return all results as rows.

    Raises:
        BadInput: missing data, no checkpoint for init vgan, or one whose shape does not fit the clips.
        RuntimeError: children failed; the others' results are kept.
    """
    source = _checkpoint(config)
    for number in config.splits:
        read_split(Path(config.ucf101), number)  # a folder that is not UCF101 is told before Ray starts
    tracker = Tracker(config.tracking.uri, config.tracking.experiment or "transfer")
    tracker.experiment_id()  # a tracking server that cannot be used is told before the work, not after
    storage.make_folder(config.out)
    with ray_session(config.address):
        clips_url = dataset_url(config.out)
        manifest = prepare_labelled(config.ucf101, config.splits, clips_url, config.video, seed=config.seed)
        data = {s: load_split(config.ucf101, s, clips_url, manifest, config.dataset) for s in config.splits}
        for number, clips in data.items():
            print(f"split {number}: {clips.summary()}", flush=True)
        return _run_children(config, tracker, source, manifest, data)


def _run_children(
    config: SweepConfig,
    tracker: Tracker,
    source: checkpoints.Checkpoint | None,
    manifest: Manifest,
    data: dict[int, LabelledClips],
) -> list[dict[str, Any]]:
    """Run the children under one MLflow parent run."""
    results_url = storage.join(config.out, config.name)
    key = runs.claim(results_url, config.name, _pinned(config, manifest.digest, source))
    lineage = {
        "sweep_id": key,
        "dataset_hash": manifest.digest,
        "checkpoint_uri": source.url if source else "",
        "pretraining_dataset_hash": source.dataset_digest if source else "",
        "git_commit": runs.git_commit(),
    }
    again = tracker.finished(key)
    parent = tracker.start(
        key, name=config.name, params=runs.flatten(runs.public_settings(config)), tags={"kind": "sweep", **lineage}
    )
    parent.dataset(name=config.dataset, digest=manifest.digest, url=dataset_url(config.out), context="transfer")
    rows: list[dict[str, Any]] = []
    failed = []
    with parent.ending():
        for child, outcome in _outcomes(config, source, data, results_url):
            if isinstance(outcome, BaseException):
                failed.append(f"{child.name}: {outcome}")
                continue
            log_child(tracker, parent, child, outcome, key, lineage)
            rows.append(asdict(child) | {k: outcome[k] for k in ("accuracy", "protocol", "chance")})
            log_results(parent, rows)
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(_children(config))} children failed:\n" + "\n".join(failed))
        if not again:
            log_curves(parent, rows)
    return sorted(rows, key=lambda r: (r["split"], r["init"], r["fraction"], r["seed"]))


def _children(config: SweepConfig) -> list[Child]:
    return [
        Child(split, init, fraction, seed)
        for split in config.splits
        for fraction in config.fractions
        for seed in config.seeds
        for init in config.inits
    ]


def _outcomes(
    config: SweepConfig, source: checkpoints.Checkpoint | None, data: dict[int, LabelledClips], results_url: str
) -> Iterator[tuple[Child, Any]]:
    """Each child with its result, or the error that ended it; earlier results first, then as they finish."""
    model = source.model if source else config.model
    shared = {number: ray.put(clips) for number, clips in data.items()}
    train = ray.remote(num_cpus=1, num_gpus=int(config.use_gpu), max_retries=2)(run_child)
    waiting: dict[Any, Child] = {}
    children = _children(config)
    with progress_bar(total=len(children), unit="run", desc="sweep") as bar:
        for child in children:
            url = storage.join(results_url, f"{child.name}.json")
            if storage.exists(url):
                bar.update()
                yield child, storage.read_json(url)
            else:
                waiting[train.remote(child, shared[child.split], model, config.finetune, source, config.use_gpu)] = (
                    child
                )
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
            child = waiting.pop(ready)
            try:
                outcome = ray.get(ready)
            except ray.exceptions.RayError as fault:
                bar.update()
                yield child, fault
                continue
            bar.set_postfix_str(f"{child.name} {outcome['accuracy']:.1%}", refresh=False)
            bar.update()
            storage.write_json(storage.join(results_url, f"{child.name}.json"), outcome)
            yield child, outcome


def run_child(
    child: Child,
    clips: LabelledClips,
    model: ModelConfig,
    config: FinetuneConfig,
    source: checkpoints.Checkpoint | None,
    use_gpu: bool = False,
) -> dict[str, Any]:
    """Fine-tune and test one child; suitable for `ray.remote`. Returns plain values for JSON."""
    torch.manual_seed(child.seed)
    network = Classifier(model, len(clips.classes), config.dropout)
    if child.init == "vgan":
        assert source is not None
        checkpoints.load_weights(source, "discriminator", network.trunk, prefix="trunk.")
    network.settle()
    if child.init == "random":
        network.trunk.apply(_reset)
    pool = np.flatnonzero(clips.train)
    chosen = pool[subset(clips.labels[pool], child.fraction, child.seed)]
    test = np.flatnonzero(~clips.train)
    frames, labels = clips.frames, torch.tensor(clips.labels)
    result: FinetuneResult = finetune(
        network,
        torch.from_numpy(frames[chosen]),
        labels[chosen],
        torch.from_numpy(frames[test]),
        labels[test],
        config,
        seed=child.seed,
        protocol=clips.protocol,
        device="cuda" if use_gpu else "cpu",
    )
    return {
        "accuracy": result.accuracy,
        "chance": 1 / len(clips.classes),
        "protocol": result.protocol,
        "metrics": result.metrics,
        "losses": list(result.losses),
        "confusion": result.confusion.tolist(),
        "num_train": len(chosen),
        "subset": sorted(clips.clip_ids[chosen].tolist()),
    }


def _reset(module: torch.nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()


def _checkpoint(config: SweepConfig) -> checkpoints.Checkpoint | None:
    """The checkpoint of init vgan, after a look that its weights load and its network fits the clips.

    Raises:
        BadInput: it is missing or does not fit.
    """
    if not config.checkpoint and "vgan" in config.inits:
        raise BadInput("inits names vgan, so checkpoint= is required; or give inits=[random]")
    found = checkpoints.open_checkpoint(config.checkpoint) if config.checkpoint else None
    model = found.model if found else config.model
    for key in ("num_frames", "size"):
        ours, theirs = getattr(config.video.clip, key), getattr(model, key)
        if ours != theirs:
            raise BadInput(f"the network takes clips of {key}={theirs}: set video.clip.{key}={theirs}, got {ours}")
    if found:
        trunk = Classifier(model, 2, config.finetune.dropout).trunk
        checkpoints.load_weights(found, "discriminator", trunk, prefix="trunk.")
    return found


def _pinned(config: SweepConfig, digest: str, source: checkpoints.Checkpoint | None) -> dict[str, Any]:
    """What every child of a sweep shares."""
    model = asdict(source.model if source else config.model)
    return {
        "finetune": asdict(config.finetune),
        "data": digest,
        "checkpoint": source.url if source else "",
        "model": model,
    }
