"""Training on Ray Train workers, the driver's side: settings, checks, start, and what to do about how it ended."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from cluster import engines
from cluster.checkpoints import store
from cluster.dataset.manifest import Manifest, read_manifest
from cluster.dataset.scene_selection import scene_mask
from cluster.observability.mlflow_tracker import Run, Tracker
from cluster.observability.system_metrics import installed_packages
from cluster.observability.tracking_config import TrackingConfig
from cluster.runtime.placement import train_labels
from cluster.runtime.provenance import flatten, git_commit, redacted_settings
from cluster.runtime.ray_session import ray_session
from cluster.runtime.run_registry import check_name, register_run
from cluster.sizing import Sizing, check_memory, matrix_flop_per_s, memory_gb, sizing
from cluster.stopping import HeedingConfig, run_stoppable, start_signal
from cluster.storage.files import free_disk_bytes, json_bytes, make_writable_folder
from cluster.storage.urls import arrow_filesystem, join_url
from cluster.worker import Job, Outcome, train_worker
from vgan.errors import InputError
from vgan.models.config import ModelConfig
from vgan.options import check_choice, option, section
from vgan.presets import PRESETS
from vgan.training.config import ObjectiveConfig

log = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0
# What runs that began before an option was there have been trained with.
DEFAULTS = {
    "model": asdict(ModelConfig()),
    "objective": asdict(ObjectiveConfig()),
    "max_norm": 0.0,
    "loss_scale": 0.0,
    "scenes": [],
    "scene_threshold": 0.2,
}
PINNED = (
    *("model", "objective", "batch_size", "seed", "zero_stage", "precision", "ema_decay", "max_norm", "loss_scale"),
    *("scenes", "scene_threshold"),
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    data: str = option("", "url of a prepared dataset's folder (required)")
    scenes: list[str] = option([], "train on clips of these scene categories of the dataset only; empty: on all")
    scene_threshold: float = option(0.2, "of scenes=: probability that one of them must reach, 0..1")
    out: str = option("out/runs", "url of the folder that holds runs")
    name: str = option("gan", "name of the run; the same name in the same folder continues")
    steps: int = option(1000, "steps of both networks to reach, counted from the run's start")
    batch_size: int = option(64, "clips a step over all workers, whatever their number")
    workers: str = option(
        "1", "Ray Train workers, each with a copy of both networks: 2, or 1-8 for as many of these as there is room for"
    )
    resize_every_s: float = option(
        60.0, "of workers=1-8, seconds between looks for room; growing goes back to the last checkpoint"
    )
    hang_timeout_s: int = option(
        600,
        "seconds a step, or a checkpoint that is fetched or waited for, may take before a worker counts as failed",
    )
    use_gpu: bool = option(False, "one GPU a worker; otherwise one CPU core")
    pieces: int = option(
        1, "each worker takes its clips in so many pieces, one after the other, for less memory (gradient accumulation)"
    )
    zero_stage: int = option(0, "DeepSpeed ZeRO: 0 nothing sharded; 1 optimizer state sharded; 2 gradients as well")
    precision: str = option("fp32", "fp32, or autocast: bf16, or fp16 for GPUs that know no bf16")
    loss_scale: float = option(0.0, "of precision=fp16: what losses are multiplied with; 0 finds it as it goes")
    compiled: bool = option(False, "torch.compile each network; on CPUs it gains nothing")
    max_norm: float = option(0.0, "a network's gradient that is longer is scaled down to this norm; 0 leaves it")
    ema_decay: float = option(0.999, "decay a step of the generator's moving average; smaller in the first steps")
    checkpoint_every: int = option(200, "steps between checkpoints; the last step and a request to stop make one too")
    checkpoints_kept: int = option(3, "newest checkpoints kept; below 2 there is none before a damaged one")
    keep_best: str = option(
        "", "metric whose lowest value keeps its checkpoint too, e.g. loss/reconstruction; means since the one before"
    )
    log_every: int = option(10, "steps between progress lines and metrics")
    sample_every: int = option(200, "steps between sample grids in MLflow")
    max_failures: int = option(2, "worker failures without a new checkpoint after which the run gives up")
    seed: int = option(0, "of weights, noise and the order of clips")
    address: str = option("", "Ray cluster; empty: the one this job was submitted to, else a local one")
    preset: str = option(
        "paper", "model.* and objective.* of a name: paper, reference (its code) or stable (trains well)"
    )
    model: ModelConfig = section(ModelConfig, "the networks")
    objective: ObjectiveConfig = section(ObjectiveConfig, "losses and optimizer")
    tracking: TrackingConfig = section(TrackingConfig, "MLflow")

    def __post_init__(self) -> None:
        check_choice("preset", self.preset, tuple(PRESETS))
        check_choice("precision", self.precision, ("fp32", "bf16", "fp16"))
        if not 0 <= self.scene_threshold <= 1:
            raise ValueError(f"scene_threshold must be in 0..1, got {self.scene_threshold}")
        if self.loss_scale < 0 or (self.loss_scale and self.precision != "fp16"):
            raise ValueError(f"loss_scale must be 0 or more, and 0 unless precision=fp16, got {self.loss_scale}")
        if self.zero_stage not in (0, 1, 2):
            raise ValueError(f"zero_stage must be 0, 1 or 2, got {self.zero_stage}")
        most = self.worker_range[1]
        if self.batch_size < most * max(self.pieces, 1):
            least = f"workers={most} times pieces={self.pieces}"
            raise ValueError(f"batch_size={self.batch_size} must be at least {least}: each needs a clip")
        for key in (
            "steps",
            "batch_size",
            "pieces",
            "checkpoint_every",
            "checkpoints_kept",
            "log_every",
            "sample_every",
            "hang_timeout_s",
        ):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        if self.compiled and self.objective.r1_weight:
            raise ValueError("compiled=true and objective.r1_weight exclude each other: compiled code has one gradient")
        if self.use_gpu and most > 1 and self.objective.r1_weight and self.model.discriminator_norm == "batch":
            raise ValueError(
                "objective.r1_weight on several GPUs needs model.discriminator_norm=spectral: "
                "batch norm over workers has no second gradient"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")
        if self.max_norm < 0 or self.max_failures < 0 or self.resize_every_s <= 0:
            got = f"got {self.max_norm}, {self.max_failures} and {self.resize_every_s}"
            raise ValueError(f"max_norm and max_failures must be 0 or more, resize_every_s above 0, {got}")
        check_name(self.name)

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers."""
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", str(self.workers))
        least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= least <= most:
            raise ValueError(f"workers must be a number or a range like 1-8, got {self.workers!r}")
        return least, most


def fit(config: TrainConfig) -> store.Checkpoint:
    """Train to `config.steps`, continuing the run of that name if there is one. An interrupt saves first.

    Raises:
        InputError: no dataset, a model that does not fit it, settings that differ from the run's, no sound checkpoint
            where there are some, or a loss that is not finite.
        KeyboardInterrupt: after an interrupt, when the workers have saved.
        TrainingFailedError: workers failed more than `config.max_failures` times without getting on.
    """
    manifest = read_manifest(config.data)
    _check_fits(config, manifest)
    only = scene_mask(config.data, manifest, config.scenes, config.scene_threshold) if config.scenes else None
    clips = sum(shard.rows for shard in manifest.shards) if only is None else int(only.sum())
    run_url = join_url(config.out, config.name)
    tracker = Tracker(config.tracking.uri, config.tracking.experiment or "gan")
    tracker.experiment_id()  # a tracking server that cannot be used is told before anything is written
    size = sizing(
        config.model,
        config.objective,
        batch_size=config.batch_size,
        pieces=config.pieces,
        clips=clips,
        zero_stage=config.zero_stage,
        precision=config.precision,
    )
    print("\n".join(size.lines(config.worker_range, config.checkpoint_every)), flush=True)
    make_writable_folder(run_url)
    with ray_session(config.address) as alone:
        if alone:  # the workers will run here: what they would wait or fail for is told now
            _check_room(config, size)
            engines.prepare_ops(config.use_gpu)
        settings = redacted_settings(config)
        run = tracker.start(
            register_run(run_url, config.name, _pinned(config, manifest), DEFAULTS),
            name=config.name,
            params=flatten(settings),
            tags={"dataset_hash": manifest.digest, "run_url": run_url, "git_commit": git_commit()},
        )
        with run.ending():
            run.dataset(name="clips", digest=manifest.digest, url=config.data, context="training")
            run.text(json_bytes(settings).decode(), "settings.json")
            run.text(installed_packages(), "environment.txt")
            outcome = _train(config, manifest, only, tracker, run)
            if outcome.failed:
                raise InputError(outcome.failed)
            store.prune_checkpoints(
                run_url, config.checkpoints_kept, config.keep_best
            )  # the last one has pushed another out
            result = store.open_checkpoint(run_url)
            run.tag(checkpoint_uri=result.url)
            if config.keep_best:
                run.tag(best_checkpoint_uri=store.best_checkpoint(run_url, config.keep_best) or "none")
            if outcome.stopped:
                log.warning("stopped at step %d, which is saved: the same command goes on from it", outcome.step)
                raise KeyboardInterrupt
    return result


def _check_room(config: TrainConfig, size: Sizing) -> None:
    """Raise InputError if a Ray that cannot grow lacks CPUs, GPUs, memory or disk; else tell how fast it may be.

    Too few CPUs or GPUs it would wait for, for ever.
    """
    kind = "GPU" if config.use_gpu else "CPU"
    there, (least, most) = int(ray.cluster_resources().get(kind, 0)), config.worker_range
    if there < least:
        raise InputError(f"workers={config.workers} need a {kind} each, and there are {there}: lower workers=")
    check_memory(size, min(most, there), memory_gb())
    free_gb = free_disk_bytes(config.out) / 1e9
    needed_gb = (config.checkpoints_kept + 1 + bool(config.keep_best)) * size.checkpoint_gb
    if free_gb < needed_gb:
        raise InputError(
            f"{config.checkpoints_kept} checkpoints of {size.checkpoint_gb:.2f} GB and the next do not fit into the "
            f"{free_gb:.2f} GB free at {config.out!r}: lower checkpoints_kept= or choose another out="
        )
    if not config.use_gpu:
        step_s = size.step_s(matrix_flop_per_s() * min(most, there))
        print(
            f"by the speed of a matrix product here, a step may take {step_s:.2f} s: "
            f"{3600 / step_s / config.checkpoint_every:.1f} checkpoints an hour",
            flush=True,
        )


def _train(config: TrainConfig, manifest: Manifest, only: np.ndarray | None, tracker: Tracker, run: Run) -> Outcome:
    """How the workers ended. They are started again after failures as long as they get on between them."""
    stop = start_signal()
    job = Job(config=config, manifest=manifest, tracker=tracker, run_id=run.id, stop=stop, only=only)

    def ask_to_stop(reason: str) -> None:
        log.warning("%s: saving a checkpoint, then stopping; once more stops at once", reason)
        stop.ask.remote(reason)

    while True:
        before = store.latest_checkpoint(job.run_url)
        try:
            return run_stoppable(lambda: _trainer(job).fit().return_value, ask_to_stop)
        except TrainingFailedError:
            if store.latest_checkpoint(job.run_url) == before:
                raise
            log.warning("workers failed %d times, but got on between: starting them again", config.max_failures + 1)


def _trainer(job: Job) -> TorchTrainer:
    config = job.config
    # Ray's own 60 s are short for workers that import torch and DeepSpeed on a busy or a new node. When a node has gone
    # it may wait this long for it before it goes on with fewer.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", f"{START_TIMEOUT_S}")
    fs, path = arrow_filesystem(config.out)
    least, most = config.worker_range
    return TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        torch_config=HeedingConfig(timeout_s=config.hang_timeout_s),
        scaling_config=ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=config.use_gpu,
            label_selector=train_labels(),
            elastic_resize_monitor_interval_s=config.resize_every_s,
        ),
        run_config=RunConfig(
            name=config.name,
            storage_path=path,
            storage_filesystem=fs,
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )


def _check_fits(config: TrainConfig, manifest: Manifest) -> None:
    for key in ("num_frames", "size"):
        ours, theirs = getattr(config.model, key), getattr(manifest.clip, key)
        if ours != theirs:
            raise InputError(
                f"model.{key}={ours} but the clips of {config.data!r} have {theirs}: set model.{key}={theirs}"
            )


def _pinned(config: TrainConfig, manifest: Manifest) -> dict[str, Any]:
    """What a run keeps for life."""
    return {k: v for k, v in asdict(config).items() if k in PINNED} | {"data": manifest.digest}
