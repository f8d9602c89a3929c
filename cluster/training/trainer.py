"""Training on Ray Train workers, the driver's side: settings, checks, start, and what to do about how it ended."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from typing import Any

import numpy as np
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from cluster.checkpoints import store
from cluster.checkpoints.lineage import require_matching_shape
from cluster.dataset.manifest import Manifest, read_manifest
from cluster.dataset.scene_selection import scene_mask
from cluster.observability.mlflow_tracker import Run, Tracker
from cluster.observability.system_metrics import installed_packages
from cluster.runtime.placement import train_labels
from cluster.runtime.provenance import flatten, git_commit, redacted_settings
from cluster.runtime.ray_session import ray_session
from cluster.runtime.run_registry import register_run
from cluster.storage.files import free_disk_bytes, json_bytes, make_writable_folder
from cluster.storage.urls import arrow_filesystem, join_url
from cluster.training.config import DEFAULTS, PINNED, TrainConfig
from cluster.training.cost_estimate import (
    ResourceEstimate,
    check_memory,
    estimate_resources,
    measure_matmul_flops,
    total_memory_gb,
)
from cluster.training.deepspeed_ops import configure_deepspeed
from cluster.training.job import WorkerJob, WorkerResult
from cluster.training.shutdown import GracefulTorchConfig, create_stop_signal, run_interruptible
from cluster.training.worker import train_loop_per_worker
from vgan.errors import InputError

log = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0


def fit(config: TrainConfig) -> store.Checkpoint:
    """Train to `config.steps`, continuing the run of that name if there is one. An interrupt saves first.

    Raises:
        InputError: no dataset, a model that does not fit it, settings that differ from the run's, no sound checkpoint
            where there are some, or a loss that is not finite.
        KeyboardInterrupt: after an interrupt, when the workers have saved.
        TrainingFailedError: workers failed more than `config.max_failures` times without getting on.
    """
    manifest = read_manifest(config.data)
    require_matching_shape(config.model, manifest.clip, config.data, "set model.{key}={data}")
    only = (
        scene_mask(config.data, manifest, config.scene_categories, config.min_scene_probability)
        if config.scene_categories
        else None
    )
    clips = sum(shard.rows for shard in manifest.shards) if only is None else int(only.sum())
    run_url = join_url(config.out, config.name)
    tracker = Tracker(config.tracking.uri, config.tracking.experiment or "gan")
    tracker.experiment_id()  # a tracking server that cannot be used is told before anything is written
    size = estimate_resources(
        config.model,
        config.objective,
        batch_size=config.batch_size,
        pieces=config.gradient_accumulation_steps,
        clips=clips,
        zero_stage=config.zero_stage,
        precision=config.precision,
    )
    print("\n".join(size.lines(config.worker_range, config.checkpoint_every)), flush=True)
    make_writable_folder(run_url)
    with ray_session(config.address) as alone:
        if alone:  # the workers will run here: what they would wait or fail for is told now
            _check_room(config, size)
            configure_deepspeed(config.use_gpu)
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
                run_url, config.keep_latest_k, config.best_metric
            )  # the last one has pushed another out
            result = store.open_checkpoint(run_url)
            run.tag(checkpoint_uri=result.url)
            if config.best_metric:
                run.tag(best_checkpoint_uri=store.best_checkpoint(run_url, config.best_metric) or "none")
            if outcome.stopped:
                log.warning("stopped at step %d, which is saved: the same command goes on from it", outcome.step)
                raise KeyboardInterrupt
    return result


def _check_room(config: TrainConfig, size: ResourceEstimate) -> None:
    """Raise InputError if a Ray that cannot grow lacks CPUs, GPUs, memory or disk; else tell how fast it may be.

    Too few CPUs or GPUs it would wait for, for ever.
    """
    kind = "GPU" if config.use_gpu else "CPU"
    there, (least, most) = int(ray.cluster_resources().get(kind, 0)), config.worker_range
    if there < least:
        raise InputError(f"workers={config.workers} need a {kind} each, and there are {there}: lower workers=")
    check_memory(size, min(most, there), total_memory_gb())
    free_gb = free_disk_bytes(config.out) / 1e9
    needed_gb = (config.keep_latest_k + 1 + bool(config.best_metric)) * size.checkpoint_gb
    if free_gb < needed_gb:
        raise InputError(
            f"{config.keep_latest_k} checkpoints of {size.checkpoint_gb:.2f} GB and the next do not fit into the "
            f"{free_gb:.2f} GB free at {config.out!r}: lower keep_latest_k= or choose another out="
        )
    if not config.use_gpu:
        step_s = size.step_s(measure_matmul_flops() * min(most, there))
        print(
            f"by the speed of a matrix product here, a step may take {step_s:.2f} s: "
            f"{3600 / step_s / config.checkpoint_every:.1f} checkpoints an hour",
            flush=True,
        )


def _train(
    config: TrainConfig, manifest: Manifest, only: np.ndarray | None, tracker: Tracker, run: Run
) -> WorkerResult:
    """How the workers ended. They are started again after failures as long as they get on between them."""
    stop = create_stop_signal()
    job = WorkerJob(config=config, manifest=manifest, tracker=tracker, run_id=run.id, stop=stop, only=only)

    def ask_to_stop(reason: str) -> None:
        log.warning("%s: saving a checkpoint, then stopping; once more stops at once", reason)
        stop.ask.remote(reason)

    while True:
        before = store.latest_checkpoint(job.run_url)
        try:
            return run_interruptible(lambda: _trainer(job).fit().return_value, ask_to_stop)
        except TrainingFailedError:
            if store.latest_checkpoint(job.run_url) == before:
                raise
            log.warning("workers failed %d times, but got on between: starting them again", config.max_failures + 1)


def _trainer(job: WorkerJob) -> TorchTrainer:
    config = job.config
    # Ray's own 60 s are short for workers that import torch and DeepSpeed on a busy or a new node. When a node has gone
    # it may wait this long for it before it goes on with fewer.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", f"{START_TIMEOUT_S}")
    fs, path = arrow_filesystem(config.out)
    least, most = config.worker_range
    return TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"job": job},
        torch_config=GracefulTorchConfig(timeout_s=config.step_timeout_s),
        scaling_config=ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=config.use_gpu,
            label_selector=train_labels(),
            elastic_resize_monitor_interval_s=config.elastic_check_interval_s,
        ),
        run_config=RunConfig(
            name=config.name,
            storage_path=path,
            storage_filesystem=fs,
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )


def _pinned(config: TrainConfig, manifest: Manifest) -> dict[str, Any]:
    """What a run keeps for life."""
    return {k: v for k, v in asdict(config).items() if k in PINNED} | {"data": manifest.digest}
