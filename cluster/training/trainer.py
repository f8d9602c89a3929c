"""Training on Ray Train workers, driver side: settings, checks before the start, restarts, and the final result."""

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
from cluster.dataset.clip_selection import quality_mask, scene_mask
from cluster.dataset.manifest import Manifest, read_manifest
from cluster.observability.mlflow_tracker import Run, Tracker
from cluster.observability.system_metrics import installed_packages
from cluster.runtime.placement import train_labels
from cluster.runtime.provenance import git_commit, redacted_settings
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
from vgan.options import flatten

log = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0


def fit(config: TrainConfig) -> store.Checkpoint:
    """Train up to step `config.steps`, continuing the run of that name if it exists. An interrupt saves a checkpoint.

    Returns:
        The last checkpoint.

    Raises:
        InputError: there is no dataset, the model does not fit it, the settings differ from the run's, all checkpoints
            are damaged, or a loss is not finite.
        KeyboardInterrupt: after an interrupt, once the workers have saved.
        TrainingFailedError: workers failed more than `config.max_failures` times without a new checkpoint.
    """
    manifest = read_manifest(config.data)
    require_matching_shape(config.model, manifest.clip, config.data, "set model.{key}={data}")
    only = _selected_clips(config, manifest)
    clips = sum(shard.rows for shard in manifest.shards) if only is None else int(only.sum())
    run_url = join_url(config.out, config.name)
    tracker = Tracker(config.tracking.uri, config.tracking.experiment or "gan")
    tracker.experiment_id()  # an unusable tracking server raises here, before anything is written
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
    with ray_session(config.address) as is_local:
        if is_local:  # the workers will run on this machine: missing resources and compilers raise here
            _check_room(config, size)
            configure_deepspeed(config.use_gpu)
        settings = redacted_settings(config)
        run = tracker.start(
            register_run(run_url, config.name, _pinned(config, manifest), DEFAULTS),
            name=config.name,
            params=flatten(settings),
            tags={"dataset_hash": manifest.digest, "run_url": run_url, "git_commit": git_commit()},
        )
        with run.run_context():
            run.dataset(name="clips", digest=manifest.digest, url=config.data, context="training")
            run.text(json_bytes(settings).decode(), "settings.json")
            run.text(installed_packages(), "environment.txt")
            outcome = _train(config, manifest, only, tracker, run)
            if outcome.failed:
                raise InputError(outcome.failed)
            store.prune_checkpoints(run_url, config.keep_latest_k, config.best_metric)  # the last save added one
            result = store.open_checkpoint(run_url)
            run.set_tags(checkpoint_uri=result.url)
            if config.best_metric:
                run.set_tags(best_checkpoint_uri=store.best_checkpoint(run_url, config.best_metric) or "none")
            if outcome.stopped:
                log.warning("stopped and saved at step %d: the same command continues from there", outcome.step)
                raise KeyboardInterrupt
    return result


def _selected_clips(config: TrainConfig, manifest: Manifest) -> np.ndarray | None:
    """Return the mask (clips,) bool of the clips to train on, None for all.

    Raises:
        InputError: none is left.
    """
    masks = []
    if config.scene_categories:
        masks.append(scene_mask(config.data, manifest, config.scene_categories, config.min_scene_probability))
    if config.min_quality > 0:
        masks.append(quality_mask(config.data, manifest, config.min_quality))
    if not masks:
        return None
    selected = np.logical_and.reduce(masks)
    if not selected.any():
        raise InputError(f"no clip of {config.data!r} has both the scenes and min_quality={config.min_quality:g}")
    return selected


def _check_room(config: TrainConfig, size: ResourceEstimate) -> None:
    """Check CPUs, GPUs, memory and disk of a local Ray, which cannot grow, and print the estimated speed.

    Ray would wait for missing CPUs or GPUs without end.

    Raises:
        InputError: too few CPUs or GPUs, or too little memory or disk.
    """
    resource = "GPU" if config.use_gpu else "CPU"
    available, (min_workers, max_workers) = int(ray.cluster_resources().get(resource, 0)), config.worker_range
    if available < min_workers:
        raise InputError(f"workers={config.workers} need one {resource} each, but Ray has {available}: lower workers=")
    check_memory(size, min(max_workers, available), total_memory_gb())
    free_gb = free_disk_bytes(config.out) / 1e9
    needed_gb = (config.keep_latest_k + 1 + bool(config.best_metric)) * size.checkpoint_gb
    if free_gb < needed_gb:
        raise InputError(
            f"{config.keep_latest_k} checkpoints of {size.checkpoint_gb:.2f} GB and the next one do not fit into "
            f"the {free_gb:.2f} GB free at {config.out!r}: lower keep_latest_k= or choose another out="
        )
    if not config.use_gpu:
        step_s = size.step_s(measure_matmul_flops() * min(max_workers, available))
        print(
            f"estimated from the speed of a matrix product: {step_s:.2f} s per step, "
            f"{3600 / step_s / config.checkpoint_every:.1f} checkpoints per hour",
            flush=True,
        )


def _train(
    config: TrainConfig, manifest: Manifest, only: np.ndarray | None, tracker: Tracker, run: Run
) -> WorkerResult:
    """Run the workers and return their result; restart them after failures as long as there are new checkpoints."""
    stop = create_stop_signal()
    job = WorkerJob(config=config, manifest=manifest, tracker=tracker, run_id=run.id, stop=stop, only=only)

    def ask_to_stop(reason: str) -> None:
        """Request that the workers save and stop."""
        log.warning("%s: stopping after a checkpoint; interrupt again to stop at once", reason)
        stop.ask.remote(reason)

    while True:
        last_checkpoint = store.latest_checkpoint(job.run_url)
        try:
            return run_interruptible(lambda: _trainer(job).fit().return_value, ask_to_stop)
        except TrainingFailedError:
            if store.latest_checkpoint(job.run_url) == last_checkpoint:
                raise
            log.warning("workers failed %d times, but saved new checkpoints: restarting them", config.max_failures + 1)


def _trainer(job: WorkerJob) -> TorchTrainer:
    """Create the Ray Train trainer."""
    config = job.config
    # Ray's default of 60 s is short for workers that import torch and DeepSpeed on a busy or a new node. After the loss
    # of a node, Ray may wait this long for a new one before it continues with fewer workers.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", f"{START_TIMEOUT_S}")
    fs, path = arrow_filesystem(config.out)
    min_workers, max_workers = config.worker_range
    return TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"job": job},
        torch_config=GracefulTorchConfig(timeout_s=config.step_timeout_s),
        scaling_config=ScalingConfig(
            num_workers=max_workers if min_workers == max_workers else (min_workers, max_workers),
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
    """Return the settings that a run must not change when it is continued, and the dataset's digest."""
    return {k: v for k, v in asdict(config).items() if k in PINNED} | {"data": manifest.digest}
