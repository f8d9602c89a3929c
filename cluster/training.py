"""Adversarial training on Ray Train workers: the driver's side (fit) and each worker's loop (train_worker)."""

from __future__ import annotations

import math
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch import Tensor

from cluster import checkpoints, engines, runs, storage
from cluster.batches import Batch, ClipReader
from cluster.session import ray_session
from cluster.shards import Manifest, read_manifest
from cluster.tracking import Run, Tracker, TrackingConfig
from vgan import gan
from vgan.config import ModelConfig, ObjectiveConfig, check_choice, option, section
from vgan.errors import BadInput
from vgan.health import health, warnings
from vgan.presets import PRESETS
from vgan.video.pixels import batch_from_model_range, batch_to_model_range
from vgan.viz.panels import strip

SHOWN = {
    "loss/discriminator": "D",
    "loss/generator": "G",
    "loss/reconstruction": "error",
    "discriminator/margin": "margin",
    "mask/mean": "mask",
    "samples/diversity": "diversity",
}
LASTING = 5  # progress lines that something is wrong on before it is said: the first steps are wrong in every way
# What runs that began before an option was there have been trained with.
DEFAULTS = {"model": asdict(ModelConfig()), "objective": asdict(ObjectiveConfig())}
PINNED = ("model", "objective", "batch_size", "seed", "zero_stage", "precision", "ema_decay")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    data: str = option("", "url of a prepared dataset's folder (required)")
    out: str = option("out/runs", "url of the folder that holds runs")
    name: str = option("gan", "name of the run; the same name in the same folder continues")
    steps: int = option(1000, "steps of both networks to reach, counted from the run's start")
    batch_size: int = option(64, "clips a step over all workers; a multiple of workers")
    workers: int = option(1, "Ray Train workers, each with a copy of both networks")
    use_gpu: bool = option(False, "one GPU a worker; otherwise one CPU core")
    zero_stage: int = option(0, "DeepSpeed ZeRO: 0 nothing sharded; 1 optimizer state sharded, worker count then fixed")
    precision: str = option("fp32", "fp32 or bf16 (autocast)")
    compiled: bool = option(False, "torch.compile each network; on CPUs it gains nothing")
    ema_decay: float = option(0.999, "decay a step of the generator's moving average; smaller in the first steps")
    checkpoint_every: int = option(200, "steps between checkpoints; the last step always makes one")
    checkpoints_kept: int = option(3, "newest checkpoints kept")
    log_every: int = option(10, "steps between progress lines and metrics")
    sample_every: int = option(200, "steps between sample grids in MLflow")
    max_failures: int = option(2, "worker failures after which the run gives up")
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
        check_choice("precision", self.precision, ("fp32", "bf16"))
        if self.zero_stage not in (0, 1):
            raise ValueError(f"zero_stage must be 0 or 1, got {self.zero_stage}")
        for key in (
            "steps",
            "batch_size",
            "workers",
            "checkpoint_every",
            "checkpoints_kept",
            "log_every",
            "sample_every",
        ):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        if self.compiled and self.objective.r1_weight:
            raise ValueError("compiled=true and objective.r1_weight exclude each other: compiled code has one gradient")
        if self.use_gpu and self.workers > 1 and self.objective.r1_weight and self.model.discriminator_norm == "batch":
            raise ValueError(
                "objective.r1_weight on several GPUs needs model.discriminator_norm=spectral: "
                "batch norm over workers has no second gradient"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")
        if self.batch_size % self.workers:
            raise ValueError(f"batch_size={self.batch_size} must be a multiple of workers={self.workers}")
        runs.check_name(self.name)


def fit(config: TrainConfig) -> checkpoints.Checkpoint:
    """Train to `config.steps`, continuing the run of that name if there is one.

    Raises:
        BadInput: no dataset, a model that does not fit it, or settings that differ from the run's.
    """
    manifest = read_manifest(config.data)
    _check_fits(config, manifest)
    run_url = storage.join(config.out, config.name)
    tracker = Tracker(config.tracking.uri, config.tracking.experiment or "gan")
    tracker.experiment_id()  # a tracking server that cannot be used is told before anything is written
    storage.make_folder(run_url)
    with ray_session(config.address) as alone:
        if alone:  # the workers will run here: what they would wait or fail for is told now
            _check_room(config)
            engines.prepare_ops(config.use_gpu)
        run = tracker.start(
            runs.claim(run_url, config.name, _pinned(config, manifest), DEFAULTS),
            name=config.name,
            params=runs.flatten(runs.public_settings(config)),
            tags={"dataset_hash": manifest.digest, "run_url": run_url, "git_commit": runs.git_commit()},
        )
        with run.ending():
            run.dataset(name="clips", digest=manifest.digest, url=config.data, context="training")
            _trainer(config, manifest, tracker, run.id).fit()
            result = checkpoints.open_checkpoint(run_url)
            run.tag(checkpoint_uri=result.url)
    return result


def _check_room(config: TrainConfig) -> None:
    """Raise BadInput if a Ray that cannot grow has too few CPUs or GPUs: it would wait for ever."""
    kind = "GPU" if config.use_gpu else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))
    if there < config.workers:
        raise BadInput(f"workers={config.workers} need a {kind} each, and there are {there}: lower workers=")


def _trainer(config: TrainConfig, manifest: Manifest, tracker: Tracker, run_id: str) -> TorchTrainer:
    fs, path = storage.arrow_filesystem(config.out)
    return TorchTrainer(
        train_worker,
        train_loop_config={"config": config, "manifest": manifest, "tracker": tracker, "run_id": run_id},
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=config.use_gpu),
        run_config=RunConfig(
            name=config.name,
            storage_path=path,
            storage_filesystem=fs,
            checkpoint_config=CheckpointConfig(num_to_keep=config.checkpoints_kept),
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )


def _check_fits(config: TrainConfig, manifest: Manifest) -> None:
    for key in ("num_frames", "size"):
        ours, theirs = getattr(config.model, key), getattr(manifest.clip, key)
        if ours != theirs:
            raise BadInput(
                f"model.{key}={ours} but the clips of {config.data!r} have {theirs}: set model.{key}={theirs}"
            )


def _pinned(config: TrainConfig, manifest: Manifest) -> dict[str, Any]:
    """What a run keeps for life. ZeRO-1 checkpoints fit one number of workers."""
    workers = {"workers": config.workers} if config.zero_stage else {}
    return {k: v for k, v in asdict(config).items() if k in PINNED} | {"data": manifest.digest} | workers


# ---- worker ------------------------------------------------------------------------------------------------------


def train_worker(loop: dict[str, Any]) -> None:
    """One worker's life: build, resume, step, report. Every rank reports equally often; rank 0 alone logs."""
    config: TrainConfig = loop["config"]
    manifest: Manifest = loop["manifest"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    run = Run(loop["tracker"], loop["run_id"]) if rank == 0 else None

    engines.prepare_ops(config.use_gpu)
    torch.manual_seed(config.seed)
    nets = engines.make_engines(
        config.model,
        config.objective,
        batch_size=config.batch_size // world_size,
        zero_stage=config.zero_stage,
        precision=config.precision,
        compiled=config.compiled,
        use_gpu=config.use_gpu,
    )
    start = _resume(nets)
    reader = ClipReader(
        config.data, manifest, seed=config.seed, batch_size=config.batch_size, rank=rank, world_size=world_size
    )
    feed = reader.batches(consumed=start * config.batch_size)
    if start >= config.steps:
        return
    if rank == 0:
        _say(f"training {config.name!r} from step {start} to {config.steps} on {world_size} workers, {nets.device}")
    clock, wrong = _Clock(), dict[str, int]()
    for step in range(start + 1, config.steps + 1):
        began = time.perf_counter()
        batch, wait_s = _timed_next(feed)
        real = batch_to_model_range(batch.frames.to(nets.device))  # (B, 3, T, H, W)
        draws = gan.Draws.of_step(config.seed, step, config.batch_size, config.model.z_size)
        draws = draws.share(rank, world_size, nets.device)
        done = gan.update(nets.by_name, real, draws, config.model, config.objective)
        _check_finite(done.metrics, step, rank)
        decay = gan.average_decay(config.ema_decay, step)
        gan.update_average(nets.average, nets.by_name["generator"].module, decay)
        clock.tick(began, wait_s)
        if step % config.log_every == 0 or step == config.steps:
            values = engines.mean_over_ranks(done.metrics | health(real, done.streams))
            if run:
                wrong = _log_progress(run, values | clock.rates(config.batch_size), step, config, wrong)
        if run and (step % config.sample_every == 0 or step == config.steps):
            run.image(sample_grid(nets.average, real, config), "samples", step)
        if step % config.checkpoint_every == 0 or step == config.steps:
            _save(nets, step, loop, rank, world_size)


@torch.no_grad()
def sample_grid(generator: torch.nn.Module, real: Tensor, config: TrainConfig, num: int = 8) -> np.ndarray:
    """Film strips of up to `num` clips drawn from fixed noise, below each other: uint8 (H, W, 3).

    A future model draws from the first frames of `real` (B, 3, T, H, W), an autoencoder redraws it; the strip above
    each is then the real one.
    """
    z = gan.Draws.of_step(config.seed, 0, num, config.model.z_size).z.to(real.device)
    real = real[:num]
    given = {"future": real[:, :, 0], "autoencoder": real}.get(config.model.kind, z)
    rows = [strip(clip) for clip in batch_from_model_range(generator.eval()(given).video).cpu().numpy()]
    if given is not z:
        truth = [strip(clip) for clip in batch_from_model_range(real).cpu().numpy()]
        rows = [row for pair in zip(truth, rows, strict=True) for row in pair]
    return np.concatenate(rows)


def _resume(nets: engines.Engines) -> int:
    """Restore the newest checkpoint, if any; the step it was taken at."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        engines.load_engines(nets, Path(folder))
        found = checkpoints.open_checkpoint(folder)
        checkpoints.load_weights(found, "generator_ema", nets.average)
    return found.step


def _save(nets: engines.Engines, step: int, loop: dict[str, Any], rank: int, world_size: int) -> None:
    """Write this rank's files and report them; Ray merges the ranks' folders into one checkpoint."""
    config: TrainConfig = loop["config"]
    engines.average_buffers(list(nets.modules.values()))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        engines.save_engines(nets, folder)
        if rank == 0:
            state = {
                "step": step,
                "clips_seen": step * config.batch_size,
                "model": asdict(config.model),
                "config": runs.public_settings(config),
                "dataset_url": config.data,
                "dataset_digest": loop["manifest"].digest,
                "mlflow_run_id": loop["run_id"],
                "world_size": world_size,
            }
            checkpoints.write_state(folder, state, nets.modules)
        holds_files = any(p.is_file() for p in folder.rglob("*"))  # under ZeRO-0 only rank 0 writes
        ray.train.report(
            {"step": step},
            checkpoint=ray.train.Checkpoint.from_directory(scratch) if holds_files else None,
            checkpoint_dir_name=f"step_{step:08d}_{uuid.uuid4().hex[:6]}",  # rank 0's counts; never a failed attempt's
        )


def _check_finite(metrics: dict[str, Tensor], step: int, rank: int) -> None:
    """Stop a run that has diverged, before it is saved over what was good.

    Raises:
        FloatingPointError: a loss is not finite; names it, the step and the rank.
    """
    bad = [name for name, value in metrics.items() if not torch.isfinite(value)]
    if bad:
        raise FloatingPointError(f"{', '.join(bad)} not finite at step {step} on rank {rank}")


def _timed_next(feed: Iterator[Batch]) -> tuple[Batch, float]:
    started = time.perf_counter()
    return next(feed), time.perf_counter() - started


class _Clock:
    """Time spent on steps and on waiting for clips since the last progress line."""

    def __init__(self) -> None:
        self.steps, self.busy_s, self.waited_s = 0, 0.0, 0.0

    def tick(self, began: float, wait_s: float) -> None:
        self.steps, self.waited_s = self.steps + 1, self.waited_s + wait_s
        self.busy_s += time.perf_counter() - began

    def rates(self, batch_size: int) -> dict[str, float]:
        """Rates a step, checkpoints and pictures left out; starts anew."""
        steps, busy_s, waited_s = self.steps, self.busy_s, self.waited_s
        self.steps, self.busy_s, self.waited_s = 0, 0.0, 0.0
        return {
            "throughput/clips_per_s": steps * batch_size / busy_s,
            "throughput/step_s": busy_s / steps,
            "data/wait_s": waited_s / steps,
        }


def _log_progress(
    run: Run, values: dict[str, float], step: int, config: TrainConfig, wrong: dict[str, int]
) -> dict[str, int]:
    """Log the metrics and print a line; say what is wrong when it lasts. Returns for how many lines each thing has."""
    finite = {key: value for key, value in values.items() if math.isfinite(value)}
    run.metrics(finite | {"progress/clips_seen": step * config.batch_size}, step)
    left_s = (config.steps - step) * values["throughput/step_s"]
    losses = "  ".join(f"{short} {values[key]:.3f}" for key, short in SHOWN.items() if key in values)
    _say(
        f"step {step}/{config.steps}  {losses}  {values['throughput/clips_per_s']:.1f} clips/s  "
        f"wait {values['data/wait_s'] * 1000:.0f} ms  {left_s / 60:.1f} min left"
    )
    found = warnings(values)
    wrong = {name: wrong.get(name, 0) + 1 for name in found}
    for name in found:
        if wrong[name] == LASTING:
            _say(f"warning: since step {step - (LASTING - 1) * config.log_every}: {found[name]}")
            run.tag(**{f"warning.{name}": found[name]})
    return wrong


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")  # Ray Train repeats what goes through print()
    sys.stdout.flush()
