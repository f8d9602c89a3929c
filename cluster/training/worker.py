"""Training loop of a Ray Train worker: build, resume, step, save, stop. Only rank 0 logs."""

from __future__ import annotations

import math
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import ray.train
import torch
from torch import Tensor

from cluster.checkpoints import store
from cluster.checkpoints.async_writer import AsyncCheckpointWriter
from cluster.dataset.loader import ClipReader, prefetch
from cluster.dataset.order import rank_slice
from cluster.observability import log_format
from cluster.runtime.provenance import redacted_settings
from cluster.training.collectives import (
    any_rank_true,
    average_buffers,
    broadcast_from_rank_zero,
    is_rank_zero,
    mean_over_ranks,
)
from cluster.training.deepspeed_ops import configure_deepspeed
from cluster.training.engines import Engines, make_engines, unscale_metrics, weighted_engines
from cluster.training.job import WorkerJob, WorkerResult
from cluster.training.optimizer_state import load_optimizers, save_optimizers
from cluster.training.reporter import ProgressReporter, StepClock, count_step, timed_next
from cluster.training.shutdown import StopMonitor, watchdog
from vgan.allocator import keep_freed_memory
from vgan.errors import InputError
from vgan.renamed_keys import SETTINGS_VERSION
from vgan.training.diagnostics import training_diagnostics
from vgan.training.ema import ema_decay_at, update_ema
from vgan.training.gan_step import StepRandomness, train_step
from vgan.video.normalize import denormalize_clips, normalize_clips
from vgan.viz.panels import film_strip

if TYPE_CHECKING:
    from cluster.training.config import TrainConfig
OPTIMIZER = "optimizer"  # folder of a checkpoint


def train_loop_per_worker(loop: dict[str, Any]) -> WorkerResult:
    """Run one worker. All ranks take the same steps, and save and stop after the same step."""
    job: WorkerJob = loop["job"]
    config = job.config
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    log_format.set_log_context(config.name, f"rank-{rank}")

    configure_deepspeed(config.use_gpu)
    keep_freed_memory()
    torch.manual_seed(config.seed)
    first, end = rank_slice(config.batch_size, rank, world_size)
    nets = make_engines(
        config.model,
        config.objective,
        batch_size=-(-(end - first) // config.gradient_accumulation_steps),
        pieces=config.gradient_accumulation_steps,
        zero_stage=config.zero_stage,
        precision=config.precision,
        compiled=config.compile,
        max_norm=config.max_grad_norm,
        loss_scale=config.loss_scale,
        use_gpu=config.use_gpu,
    )
    try:
        with watchdog(config.step_timeout_s):
            start = resume(nets, job.run_url)
    except InputError as error:
        return WorkerResult(step=0, failed=str(error))
    if start >= config.steps:
        return WorkerResult(step=start)
    report = ProgressReporter(job, world_size) if rank == 0 else None
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
    attempt = broadcast_from_rank_zero(uuid.uuid4().hex[:6])
    prune = partial(store.prune_checkpoints, job.run_url, config.keep_latest_k, config.best_metric)
    saver = AsyncCheckpointWriter(job.run_url, attempt, rank=rank, world_size=world_size, prune=prune)
    with watchdog(config.step_timeout_s) as reset_timer:
        outcome = training_loop(job, nets, reader, saver, report, start, reset_timer)
    if report:
        report.close()
    return outcome


def training_loop(
    job: WorkerJob,
    nets: Engines,
    reader: ClipReader,
    saver: AsyncCheckpointWriter,
    report: ProgressReporter | None,
    start: int,
    going_on: Callable[[], None],
) -> WorkerResult:
    """Train from the step after `start` to the last step, or until any rank has a reason to stop.

    Args:
        job: description of the run.
        nets: engines, with the state of step `start`.
        reader: clips of this rank.
        saver: checkpoint writer of this rank.
        report: progress report on rank 0; None on other ranks.
        start: step of the checkpoint that was loaded; 0 for a new run.
        going_on: resets the timer against hangs.
    """
    config, rank, world_size = job.config, reader.rank, reader.world_size
    first, end = rank_slice(config.batch_size, rank, world_size)
    weight = (end - first) * world_size / config.batch_size
    weighted = weighted_engines(nets, weight)
    monitor = StopMonitor(job.stop if rank == 0 else None)
    checkpoints = CheckpointSchedule(job, nets, saver)
    feed = prefetch(reader.batches(consumed=start * config.batch_size, pin=config.use_gpu))
    clock, started_s = StepClock(), time.time()
    for step in range(start + 1, config.steps + 1):
        going_on()
        step_started, last = time.perf_counter(), step == config.steps
        batch, wait_s = timed_next(feed)
        real = normalize_clips(batch.frames.to(nets.device, non_blocking=True))  # (B/N, 3, T, H, W)
        draws = StepRandomness.of_step(config.seed, step, config.batch_size, config.model.z_size)
        rank_draws = draws.share(rank, world_size, nets.device)
        result = train_step(
            weighted, real, rank_draws, config.model, config.objective, config.gradient_accumulation_steps
        )
        metrics = unscale_metrics(nets, result.metrics)
        flags = shared_flags(nets, metrics, monitor)
        if flags.diverged:  # return without a checkpoint: the last one is still good
            saver.close()
            return WorkerResult(step=step, failed=divergence_message(mean_over_ranks(metrics), step))
        update_ema(nets.average, nets.by_name["generator"].module, ema_decay_at(config.ema_decay, step))
        clock.tick(step_started, wait_s)
        count_step(config, step, rank, wait_s, started_s)
        if step % config.log_every == 0 or last:
            values = mean_over_ranks(metrics | training_diagnostics(real, result.streams), weight)
            if config.best_metric and config.best_metric not in values:
                saver.close()
                message = f"best_metric={config.best_metric!r} is not among {', '.join(values)}"
                return WorkerResult(step=step, failed=message)
            checkpoints.logged.append(values)
            if report:
                report.progress(values | clock.rates(config.batch_size), step)
        if report and (step % config.sample_every == 0 or last):
            report.image(draw_sample_grid(nets.average, real, config), step)
        preempted = flags.poll_due and monitor.new_preemption_notice()
        save_now = last or flags.stop_requested or flags.terminated or preempted
        if save_now or checkpoints.is_regular(step):
            going_on()
            stall_s = checkpoints.save(step, wait=save_now)
            if report:
                report.metrics({"checkpoint/stall_s": stall_s}, step)
        if preempted and report:
            report.say(f"step {step}: saved, because a node is about to be preempted; training continues until then")
        if flags.stop_requested and not last:
            return WorkerResult(step=step, stopped=True)
        if flags.terminated and not last:
            raise RuntimeError(f"a worker received SIGTERM: saved at step {step}; the group restarts from there")
    return WorkerResult(step=config.steps)


class StepFlags(NamedTuple):
    """Conditions after a step that all ranks act on."""

    diverged: bool  # a metric is not finite, or fp16 gradients stay infinite at the smallest loss scale
    stop_requested: bool  # by the driver
    terminated: bool  # a worker received SIGTERM
    poll_due: bool  # it is time to ask for preemption notices


def shared_flags(nets: Engines, metrics: dict[str, Tensor], monitor: StopMonitor) -> StepFlags:
    """Return the flags of a step, each True if it is on any rank. Every rank must call it."""
    flags = [
        not all_finite(metrics) or any(scale.exhausted for scale in nets.scales.values()),
        bool(monitor.reason),
        monitor.received_sigterm(),
        monitor.should_poll(),
    ]
    return StepFlags(*any_rank_true(flags, nets.device))


class CheckpointSchedule:
    """The checkpoints of one worker: when they are regular, and the log lines whose mean each one stores."""

    def __init__(self, job: WorkerJob, nets: Engines, saver: AsyncCheckpointWriter) -> None:
        self._job, self._nets, self._saver = job, nets, saver
        self._has_saved = False
        self.logged: list[dict[str, float]] = []  # since the last regular checkpoint

    def is_regular(self, step: int) -> bool:
        """Return whether a checkpoint is due at this step; the last step has one as well."""
        return step % self._job.config.checkpoint_every == 0

    def save(self, step: int, *, wait: bool) -> float:
        """Save a checkpoint and return the seconds that training was held up.

        Args:
            step: the step just finished.
            wait: return only when it is stored. The first checkpoint is always waited for: after a crash during its
                upload there would be none.
        """
        regular = self.is_regular(step) or step == self._job.config.steps  # others have too few lines for a mean
        metrics = mean_metrics(self.logged) if regular else {}
        write = partial(write_checkpoint, self._nets, step, self._job, metrics)
        stall_s = self._saver.save(step, write, wait=wait or not self._has_saved)
        self._has_saved = True
        if regular:
            self.logged = []
        return stall_s


@torch.no_grad()
def draw_sample_grid(generator: torch.nn.Module, real: Tensor, config: TrainConfig, num: int = 8) -> np.ndarray:
    """Generate up to `num` clips from fixed noise and draw them as film strips below each other.

    A future model generates from the first frames of `real`, an autoencoder reconstructs `real`; the strip above each
    generated one then shows the real clip.

    Args:
        generator: network; set to evaluation mode.
        real: real clips (B, 3, T, H, W) in [-1, 1].
        config: settings of the run.
        num: maximum number of clips.

    Returns:
        Image (height, width, 3) uint8.
    """
    z = StepRandomness.of_step(config.seed, 0, num, config.model.z_size).z.to(real.device)
    real = real[:num]
    inputs = {"future": real[:, :, 0], "autoencoder": real}.get(config.model.architecture, z)
    rows = [film_strip(clip) for clip in denormalize_clips(generator.eval()(inputs).video).cpu().numpy()]
    if inputs is not z:
        real_rows = [film_strip(clip) for clip in denormalize_clips(real).cpu().numpy()]
        rows = [row for pair in zip(real_rows, rows, strict=True) for row in pair]
    return np.concatenate(rows)


def resume(nets: Engines, run_url: str) -> int:
    """Restore the newest intact checkpoint, if there is one. Every rank must call it.

    Returns:
        Step of the checkpoint; 0 if there is none.

    Raises:
        InputError: all committed checkpoints are damaged.
    """
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as scratch:
        url, message = broadcast_from_rank_zero(_newest(run_url, Path(scratch)) if is_rank_zero() else ("", ""))
        if message:
            raise InputError(message)
        if not url:
            return 0
        folder = Path(scratch) / url.rpartition("/")[2]
        if not is_rank_zero():
            store.download_checkpoint(url, folder)
        checkpoint = store.open_checkpoint(str(folder))
        for name, network in nets.modules.items():
            store.load_weights(checkpoint, name, network)
        load_optimizers(nets, folder / OPTIMIZER)
    return checkpoint.step


def _newest(run_url: str, scratch: Path) -> tuple[str, str]:
    """Download the checkpoint to resume from; return (its url or "", error message or "")."""
    try:
        return store.download_latest(run_url, scratch) or "", ""
    except InputError as error:
        return "", str(error)


def mean_metrics(logged: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over log lines with equal keys; empty if there are no lines."""
    return {key: sum(line[key] for line in logged) / len(logged) for key in (logged[0] if logged else {})}


def write_checkpoint(nets: Engines, step: int, job: WorkerJob, metrics: dict[str, float], folder: Path) -> None:
    """Write this rank's files of a checkpoint into a local folder. Every rank must call it.

    Args:
        nets: engines to save.
        step: training step of their state.
        job: description of the run.
        metrics: means since the previous checkpoint; non-finite values are dropped.
        folder: local destination.
    """
    config = job.config
    average_buffers(list(nets.modules.values()))
    save_optimizers(nets, folder / OPTIMIZER)
    if is_rank_zero():
        state = {
            "step": step,
            "clips_seen": step * config.batch_size,
            "model": asdict(config.model),
            "settings_version": SETTINGS_VERSION,
            "config": redacted_settings(config),
            "dataset_url": config.data,
            "dataset_digest": job.manifest.digest,
            "mlflow_run_id": job.run_id,
            "metrics": {key: value for key, value in metrics.items() if math.isfinite(value)},
        }
        store.write_checkpoint_files(folder, state, nets.modules)


def all_finite(metrics: dict[str, Tensor]) -> bool:
    """Return True if all scalars are finite."""
    return bool(torch.stack([value.float().reshape(()) for value in metrics.values()]).isfinite().all())


def divergence_message(metrics: dict[str, float], step: int) -> str:
    """Return the error message for a run that diverged at a step; it names the non-finite metrics."""
    names = ", ".join(name for name, value in metrics.items() if not math.isfinite(value)) or "gradients in fp16 are"
    return (
        f"{names} not finite at step {step}: stopped, the previous checkpoint is kept; "
        "under another name=, try a smaller objective.learning_rate, max_grad_norm=1, precision=fp32 or "
        "(fp16) loss_scale=0"
    )
