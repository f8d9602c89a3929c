"""Progress lines and metrics of a training run."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from cluster.dataset.loader import Batch
from cluster.observability import prometheus
from cluster.observability.mlflow_queue import MlflowQueue
from cluster.observability.mlflow_tracker import Run
from cluster.observability.system_metrics import system_metrics
from cluster.training.job import WorkerJob
from vgan.training.diagnostics import diagnose

if TYPE_CHECKING:
    from cluster.training.config import TrainConfig

SHOWN = {
    "loss/discriminator": "D",
    "loss/generator": "G",
    "loss/reconstruction": "error",
    "discriminator/margin": "margin",
    "mask/mean": "mask",
    "samples/diversity": "diversity",
}
LASTING_LINES = (
    5  # consecutive progress lines before a warning is printed: diagnostics of the first steps are all abnormal
)


def timed_next(feed: Iterator[Batch]) -> tuple[Batch, float]:
    """Return the next batch, and the seconds spent waiting for it."""
    started = time.perf_counter()
    return next(feed), time.perf_counter() - started


def count_step(config: TrainConfig, step: int, rank: int, wait_s: float, started_s: float) -> None:
    """Count a step in Prometheus: wait time of every rank; clips, step and start time on rank 0 for all ranks."""
    prometheus.increment("scene_train_wait_seconds_total", wait_s, run=config.name, rank=str(rank))
    if rank == 0:
        prometheus.increment("scene_train_clips_total", config.batch_size, run=config.name)
        prometheus.set_gauge("scene_train_step", step, run=config.name)
        prometheus.set_gauge("scene_train_start_time_seconds", started_s, run=config.name)


class StepClock:
    """Timer of steps and of waits for clips since the last progress line."""

    def __init__(self) -> None:
        self.steps, self.busy_s, self.waited_s = 0, 0.0, 0.0

    def tick(self, began: float, wait_s: float) -> None:
        """Add a step that began at time `began` (perf_counter) and waited `wait_s` seconds for clips."""
        self.steps, self.waited_s = self.steps + 1, self.waited_s + wait_s
        self.busy_s += time.perf_counter() - began

    def rates(self, batch_size: int) -> dict[str, float]:
        """Return mean rates of the steps, without checkpoints and sample images, and reset the timer."""
        steps, busy_s, waited_s = self.steps, self.busy_s, self.waited_s
        self.steps, self.busy_s, self.waited_s = 0, 0.0, 0.0
        return {
            "throughput/clips_per_s": steps * batch_size / busy_s,
            "throughput/step_s": busy_s / steps,
            "data/wait_s": waited_s / steps,
        }


class ProgressReporter:
    """Progress report of rank 0: lines on stdout, metrics and images in MLflow."""

    def __init__(self, job: WorkerJob, world_size: int) -> None:
        self.config, self.world_size = job.config, world_size
        self._out = MlflowQueue(Run(job.tracker, job.run_id))
        self._num_lines: dict[str, int] = {}  # by warning: consecutive progress lines it applies to

    def say(self, line: str) -> None:
        """Write a line to stdout; Ray Train would print the output of print() twice."""
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Log the finite values."""
        self._out.metrics({key: value for key, value in values.items() if math.isfinite(value)}, step)

    def image(self, pixels: np.ndarray, step: int) -> None:
        """Log a sample grid (height, width, 3) uint8."""
        self._out.image(pixels, "samples", step)

    def progress(self, values: dict[str, float], step: int) -> None:
        """Log metrics of a step, the losses also against clips seen, and print a line; print persistent warnings."""
        clips_seen, model = step * self.config.batch_size, self.config.model
        clip_mb = model.num_frames * model.size**2 * 3 / 1e6
        values = values | {"data/mb_per_s": values["throughput/clips_per_s"] * clip_mb}
        self.metrics(values | system_metrics() | {"progress/clips_seen": clips_seen, "workers": self.world_size}, step)
        self.metrics({f"by_clips/{key}": values[key] for key in SHOWN if key in values}, clips_seen)
        remaining_s = (self.config.steps - step) * values["throughput/step_s"]
        losses = "  ".join(f"{short} {values[key]:.3f}" for key, short in SHOWN.items() if key in values)
        self.say(
            f"step {step}/{self.config.steps}  {losses}  {values['throughput/clips_per_s']:.1f} clips/s  "
            f"wait {values['data/wait_s'] * 1000:.0f} ms  {remaining_s / 60:.1f} min left"
        )
        messages = diagnose(values)
        self._num_lines = {name: self._num_lines.get(name, 0) + 1 for name in messages}
        for name in messages:
            if self._num_lines[name] == LASTING_LINES:
                self.say(f"warning: since step {step - (LASTING_LINES - 1) * self.config.log_every}: {messages[name]}")
                self._out.set_tags(**{f"warning.{name}": messages[name]})

    def close(self) -> None:
        """Send the queued entries and close."""
        self._out.close()
