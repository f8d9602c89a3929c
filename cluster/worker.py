"""What each Ray Train worker does: build, resume, step, save, stop. Rank 0 alone logs."""

from __future__ import annotations

import math
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.train
import torch
from torch import Tensor

from cluster import engines
from cluster.checkpoints import store
from cluster.checkpoints.async_writer import AsyncCheckpointWriter
from cluster.dataset.loader import Batch, ClipReader, prefetch
from cluster.dataset.manifest import Manifest
from cluster.dataset.order import rank_slice
from cluster.observability import log_format, prometheus
from cluster.observability.mlflow_queue import MlflowQueue
from cluster.observability.mlflow_tracker import Run, Tracker
from cluster.observability.system_metrics import system_metrics
from cluster.runtime.provenance import redacted_settings
from cluster.stopping import StopWatch, must_go_on
from cluster.storage.urls import join_url
from vgan.allocator import keep_freed_memory
from vgan.errors import InputError
from vgan.training.diagnostics import diagnose, training_diagnostics
from vgan.training.ema import ema_decay_at, update_ema
from vgan.training.gan_step import StepRandomness, train_step
from vgan.video.normalize import denormalize_clips, normalize_clips
from vgan.viz.panels import film_strip

if TYPE_CHECKING:
    from cluster.training import TrainConfig

SHOWN = {
    "loss/discriminator": "D",
    "loss/generator": "G",
    "loss/reconstruction": "error",
    "discriminator/margin": "margin",
    "mask/mean": "mask",
    "samples/diversity": "diversity",
}
LASTING = 5  # progress lines that something is wrong on before it is said: the first steps are wrong in every way
OPTIMIZER = "optimizer"  # folder of a checkpoint


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the driver gives every worker."""

    config: TrainConfig
    manifest: Manifest
    tracker: Tracker
    run_id: str
    stop: Any  # handle of the StopSignal
    only: np.ndarray | None = None  # bool (clips,): the clips to train on, None for all

    @property
    def run_url(self) -> str:
        return join_url(self.config.out, self.config.name)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the workers ended, all of them alike."""

    step: int
    stopped: bool = False  # before the last step, because the driver asked for it
    failed: str = ""  # why it would be no use to try again, for a person


def train_worker(loop: dict[str, Any]) -> Outcome:
    """One worker's life. Every rank takes the same steps, and saves and stops after the same ones."""
    job: Job = loop["job"]
    config = job.config
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    log_format.set_log_context(config.name, f"rank-{rank}")

    engines.prepare_ops(config.use_gpu)
    keep_freed_memory()
    torch.manual_seed(config.seed)
    first, end = rank_slice(config.batch_size, rank, world_size)
    nets = engines.make_engines(
        config.model,
        config.objective,
        batch_size=-(-(end - first) // config.pieces),
        pieces=config.pieces,
        zero_stage=config.zero_stage,
        precision=config.precision,
        compiled=config.compiled,
        max_norm=config.max_norm,
        loss_scale=config.loss_scale,
        use_gpu=config.use_gpu,
    )
    try:
        with must_go_on(config.hang_timeout_s):
            start = resume(nets, job.run_url)
    except InputError as fault:
        return Outcome(step=0, failed=str(fault))
    if start >= config.steps:
        return Outcome(step=start)
    report = Report(job, world_size) if rank == 0 else None
    if report:
        report.say(f"training {config.name!r} from step {start} to {config.steps} on {world_size}x {nets.device}")
    reader = ClipReader(
        config.data,
        job.manifest,
        seed=config.seed,
        batch_size=config.batch_size,
        rank=rank,
        world_size=world_size,
        only=job.only,
    )
    attempt = engines.of_rank_zero(uuid.uuid4().hex[:6])
    prune = partial(store.prune_checkpoints, job.run_url, config.checkpoints_kept, config.keep_best)
    saver = AsyncCheckpointWriter(job.run_url, attempt, rank=rank, world_size=world_size, prune=prune)
    with must_go_on(config.hang_timeout_s) as going_on:
        outcome = train(job, nets, reader, saver, report, start, going_on)
    if report:
        report.close()
    return outcome


def train(
    job: Job,
    nets: engines.Engines,
    reader: ClipReader,
    saver: AsyncCheckpointWriter,
    report: Report | None,
    start: int,
    going_on: Callable[[], None],
) -> Outcome:
    """Train from the step after `start` to the last one, or until all ranks know of a reason to stop."""
    config, rank, world_size = job.config, reader.rank, reader.world_size
    first, end = rank_slice(config.batch_size, rank, world_size)
    weight = (end - first) * world_size / config.batch_size
    weighed = engines.weigh(nets, weight)
    watch = StopWatch(job.stop if rank == 0 else None)
    feed = prefetch(reader.batches(consumed=start * config.batch_size, pin=config.use_gpu))
    clock, safe, logged, started_s = _Clock(), False, list[dict[str, float]](), time.time()
    for step in range(start + 1, config.steps + 1):
        going_on()
        began = time.perf_counter()
        batch, wait_s = _timed_next(feed)
        real = normalize_clips(batch.frames.to(nets.device, non_blocking=True))  # (B/N, 3, T, H, W)
        draws = StepRandomness.of_step(config.seed, step, config.batch_size, config.model.z_size)
        mine = draws.share(rank, world_size, nets.device)
        done = train_step(weighed, real, mine, config.model, config.objective, config.pieces)
        measured = engines.unscaled(nets, done.metrics)
        flags = [
            not finite(measured) or any(s.exhausted for s in nets.scales.values()),
            bool(watch.reason),
            watch.terminated(),
            watch.due(),
        ]
        bad, asked, terminated, due = engines.any_rank(flags, nets.device)
        if bad:  # nothing is saved over what was good
            saver.close()
            return Outcome(step=step, failed=divergence(engines.mean_over_ranks(measured), step))
        decay = ema_decay_at(config.ema_decay, step)
        update_ema(nets.average, nets.by_name["generator"].module, decay)
        clock.tick(began, wait_s)
        _count_step(config, step, rank, wait_s, started_s)
        last = step == config.steps
        if step % config.log_every == 0 or last:
            values = engines.mean_over_ranks(measured | training_diagnostics(real, done.streams), weight)
            logged.append(values)
            if config.keep_best and config.keep_best not in values:
                saver.close()
                return Outcome(step=step, failed=f"keep_best={config.keep_best!r} is not among {', '.join(values)}")
            if report:
                report.progress(values | clock.rates(config.batch_size), step)
        if report and (step % config.sample_every == 0 or last):
            report.image(sample_grid(nets.average, real, config), step)
        warned = due and watch.new_notice()
        now = last or asked or terminated or warned
        if step % config.checkpoint_every == 0 or now:
            wait = now or not safe  # for the first as well: a crash soon after it would else find none
            going_on()
            regular = step % config.checkpoint_every == 0 or last  # of others the mean is one of few lines
            write = partial(write_checkpoint, nets, step, job, means(logged) if regular else {})
            stall_s, safe, logged = saver.save(step, write, wait=wait), True, [] if regular else logged
            if report:
                report.metrics({"checkpoint/stall_s": stall_s}, step)
        if warned and report:
            report.say(f"step {step}: a node is about to be taken away; saved, and going on until it is")
        if asked and not last:
            return Outcome(step=step, stopped=True)
        if terminated and not last:
            raise RuntimeError(f"a worker was sent SIGTERM: saved at step {step}, where the group starts again")
    return Outcome(step=config.steps)


@torch.no_grad()
def sample_grid(generator: torch.nn.Module, real: Tensor, config: TrainConfig, num: int = 8) -> np.ndarray:
    """Film strips of up to `num` clips drawn from fixed noise, below each other: uint8 (H, W, 3).

    A future model draws from the first frames of `real` (B, 3, T, H, W), an autoencoder redraws it; the strip above
    each is then the real one.
    """
    z = StepRandomness.of_step(config.seed, 0, num, config.model.z_size).z.to(real.device)
    real = real[:num]
    given = {"future": real[:, :, 0], "autoencoder": real}.get(config.model.kind, z)
    rows = [film_strip(clip) for clip in denormalize_clips(generator.eval()(given).video).cpu().numpy()]
    if given is not z:
        truth = [film_strip(clip) for clip in denormalize_clips(real).cpu().numpy()]
        rows = [row for pair in zip(truth, rows, strict=True) for row in pair]
    return np.concatenate(rows)


def resume(nets: engines.Engines, run_url: str) -> int:
    """Restore the newest sound checkpoint, if any; the step it was taken at. Every rank must call it.

    Raises:
        InputError: there are checkpoints, and all of them are damaged.
    """
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as scratch:
        url, fault = engines.of_rank_zero(_newest(run_url, Path(scratch)) if engines.is_rank_zero() else ("", ""))
        if fault:
            raise InputError(fault)
        if not url:
            return 0
        folder = Path(scratch) / url.rpartition("/")[2]
        if not engines.is_rank_zero():
            store.download_checkpoint(url, folder)
        found = store.open_checkpoint(str(folder))
        for name, network in nets.modules.items():
            store.load_weights(found, name, network)
        engines.load_optimizers(nets, folder / OPTIMIZER)
    return found.step


def _newest(run_url: str, scratch: Path) -> tuple[str, str]:
    """Url of the checkpoint to resume from, fetched, or ""; and what is wrong, or ""."""
    try:
        return store.download_latest(run_url, scratch) or "", ""
    except InputError as fault:
        return "", str(fault)


def means(logged: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over lines that have the same ones."""
    return {key: sum(line[key] for line in logged) / len(logged) for key in (logged[0] if logged else {})}


def write_checkpoint(nets: engines.Engines, step: int, job: Job, metrics: dict[str, float], folder: Path) -> None:
    """Write this rank's files of a checkpoint into a local folder. Every rank must call it.

    Args:
        metrics: what was measured since the checkpoint before.
    """
    config = job.config
    engines.average_buffers(list(nets.modules.values()))
    engines.save_optimizers(nets, folder / OPTIMIZER)
    if engines.is_rank_zero():
        state = {
            "step": step,
            "clips_seen": step * config.batch_size,
            "model": asdict(config.model),
            "config": redacted_settings(config),
            "dataset_url": config.data,
            "dataset_digest": job.manifest.digest,
            "mlflow_run_id": job.run_id,
            "metrics": {key: value for key, value in metrics.items() if math.isfinite(value)},
        }
        store.write_checkpoint_files(folder, state, nets.modules)


def finite(metrics: dict[str, Tensor]) -> bool:
    """Whether all scalars are finite."""
    return bool(torch.stack([value.float().reshape(()) for value in metrics.values()]).isfinite().all())


def divergence(metrics: dict[str, float], step: int) -> str:
    """What to tell of a run that has diverged at a step."""
    bad = ", ".join(name for name, value in metrics.items() if not math.isfinite(value)) or "gradients in fp16 are"
    return (
        f"{bad} not finite at step {step}: stopped, and the checkpoint before it is kept; "
        "under another name=, try a smaller objective.learning_rate, max_norm=1, precision=fp32 or (fp16) loss_scale=0"
    )


def _timed_next(feed: Iterator[Batch]) -> tuple[Batch, float]:
    started = time.perf_counter()
    return next(feed), time.perf_counter() - started


def _count_step(config: TrainConfig, step: int, rank: int, wait_s: float, started_s: float) -> None:
    """Tell Prometheus of a step; rank 0 for all."""
    prometheus.increment("scene_train_wait_seconds_total", wait_s, run=config.name, rank=str(rank))
    if rank == 0:
        prometheus.increment("scene_train_clips_total", config.batch_size, run=config.name)
        prometheus.set_gauge("scene_train_step", step, run=config.name)
        prometheus.set_gauge("scene_train_start_time_seconds", started_s, run=config.name)


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


class Report:
    """What rank 0 tells: lines for a person, figures for MLflow."""

    def __init__(self, job: Job, world_size: int) -> None:
        self.config, self.world_size = job.config, world_size
        self._out = MlflowQueue(Run(job.tracker, job.run_id))
        self._wrong: dict[str, int] = {}  # for how many lines each thing has been wrong

    def say(self, line: str) -> None:
        """Print a line; what goes through print() Ray Train repeats."""
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Log what is finite."""
        self._out.metrics({key: value for key, value in values.items() if math.isfinite(value)}, step)

    def image(self, pixels: np.ndarray, step: int) -> None:
        self._out.image(pixels, "samples", step)

    def progress(self, values: dict[str, float], step: int) -> None:
        """Log the metrics, the losses against clips seen as well, and print a line; say what is wrong if it lasts."""
        clips_seen, model = step * self.config.batch_size, self.config.model
        clip_mb = model.num_frames * model.size**2 * 3 / 1e6
        values = values | {"data/mb_per_s": values["throughput/clips_per_s"] * clip_mb}
        self.metrics(values | system_metrics() | {"progress/clips_seen": clips_seen, "workers": self.world_size}, step)
        self.metrics({f"by_clips/{key}": values[key] for key in SHOWN if key in values}, clips_seen)
        left_s = (self.config.steps - step) * values["throughput/step_s"]
        losses = "  ".join(f"{short} {values[key]:.3f}" for key, short in SHOWN.items() if key in values)
        self.say(
            f"step {step}/{self.config.steps}  {losses}  {values['throughput/clips_per_s']:.1f} clips/s  "
            f"wait {values['data/wait_s'] * 1000:.0f} ms  {left_s / 60:.1f} min left"
        )
        found = diagnose(values)
        self._wrong = {name: self._wrong.get(name, 0) + 1 for name in found}
        for name in found:
            if self._wrong[name] == LASTING:
                self.say(f"warning: since step {step - (LASTING - 1) * self.config.log_every}: {found[name]}")
                self._out.tag(**{f"warning.{name}": found[name]})

    def close(self) -> None:
        """Send what is left."""
        self._out.close()
