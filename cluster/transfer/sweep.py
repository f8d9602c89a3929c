"""Sweep over label fractions: an MLflow run with a child run per (init, fraction, seed, split), in parallel on Ray."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from tqdm import tqdm

from cluster.checkpoints import store
from cluster.checkpoints.lineage import require_matching_shape
from cluster.dataset.manifest import Manifest
from cluster.observability.mlflow_tracker import Tracker
from cluster.observability.progress_bar import progress_bar
from cluster.runtime.placement import train_labels
from cluster.runtime.provenance import git_commit, redacted_settings
from cluster.runtime.ray_session import ray_session, require_resources
from cluster.runtime.run_registry import register_run
from cluster.storage.files import exists, make_writable_folder, read_json, write_json
from cluster.storage.urls import join_url
from cluster.transfer.config import SweepConfig
from cluster.transfer.initializations import PRETRAINED
from cluster.transfer.labeled_clips import (
    LabeledClips,
    config_for_test_clips,
    labeled_dataset_url,
    load_labeled_split,
    prepare_labeled_dataset,
)
from cluster.transfer.leakage import require_no_leakage
from cluster.transfer.sweep_results import (
    format_table,
    log_figures,
    log_pages_and_curves,
    log_results,
    log_run,
    log_table,
    to_row,
)
from cluster.transfer.sweep_run import Initialization, SweepRun, finetune_run, finetune_run_distributed
from vgan.errors import InputError
from vgan.options import flatten
from vgan.transfer.ucf101 import read_split

FIGURE_INTERVAL_S = 60.0  # minimum time between two drawings of the figures while runs finish


def sweep(config: SweepConfig) -> list[dict[str, Any]]:
    """Run every child run that has no result yet, and return all results as rows.

    Raises:
        InputError: data are missing, an initialization needs a checkpoint and has none, a checkpoint does not fit the
            clips, or its training dataset contains test videos.
        RuntimeError: child runs failed; the results of the others are kept.
    """
    starts = _starts(config)
    # Read once, and before Ray starts, so that a folder that is not UCF101 fails early.
    splits = [read_split(Path(config.ucf101), number) for number in config.splits]
    pretraining_datasets = {
        (start.checkpoint.dataset_url, start.checkpoint.dataset_digest) if start.checkpoint else ("", "")
        for start in starts.values()
        if start.url
    }
    remarks = {
        require_no_leakage(splits, *dataset, config.allow_test_leakage) for dataset in sorted(pretraining_datasets)
    }
    tracker = Tracker(config.tracking.uri, config.tracking.experiment or "transfer")
    tracker.experiment_id()  # fails now, not after the work, if the tracking server cannot be used
    make_writable_folder(config.out)
    with ray_session(config.address) as is_local:
        if is_local:
            require_resources("a run", " or workers=", cpus=config.workers * config.cpus, gpus=config.gpus)
        clips_url = labeled_dataset_url(config.out, config.clips_per_test_video)
        video = config_for_test_clips(config.video, config.clips_per_test_video)
        manifest = prepare_labeled_dataset(splits, clips_url, video, seed=config.seed)
        data = {
            split.number: load_labeled_split(split, clips_url, manifest, config.dataset, **_test_settings(config))
            for split in splits
        }
        for number, clips in data.items():
            print(f"split {number}: {clips.summary()}", flush=True)
        return _run_children(config, tracker, starts, manifest, data, "; ".join(filter(None, sorted(remarks))))


def _test_settings(config: SweepConfig) -> dict[str, Any]:
    """Return the settings that define the test protocol."""
    return {key: getattr(config, key) for key in ("clips_per_test_video", "validation", "validation_fold")}


class Throttle:
    """Limit of an action to once per interval; the first time is one interval after the start.

    Args:
        interval_s: seconds between two times.
        clock: source of the time in seconds.
    """

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.interval_s = interval_s
        self.clock = clock
        self._last = clock()

    def ready(self) -> bool:
        """Return True, and start the next interval, if the interval has passed."""
        now = self.clock()
        if now - self._last < self.interval_s:
            return False
        self._last = now
        return True


def _run_children(
    config: SweepConfig,
    tracker: Tracker,
    starts: dict[str, Initialization],
    manifest: Manifest,
    data: dict[int, LabeledClips],
    remark: str,
) -> list[dict[str, Any]]:
    """Run the child runs under one MLflow run, log their results as they finish, and return all results as rows.

    Metrics and the table are logged after every child run; figures, which take longer to draw, at most once per
    `FIGURE_INTERVAL_S` and at the end.
    """
    results_url = join_url(config.out, config.name)
    key = _register(config, manifest.digest, starts)
    lineage = {
        "sweep_id": key,
        "dataset_hash": manifest.digest,
        "git_commit": git_commit(),
        "remark": remark,
    }
    complete = tracker.is_finished(key)  # an earlier start has logged all results that are not new
    parent = tracker.start(
        key, name=config.name, params=flatten(redacted_settings(config)), tags={"kind": "sweep", **lineage}
    )
    url = labeled_dataset_url(config.out, config.clips_per_test_video)
    parent.dataset(name=config.dataset, digest=manifest.digest, url=url, context="transfer")
    rows: list[dict[str, Any]] = []
    failed = []
    remaining = Counter((child.split, child.fraction) for child in _children(config))
    figures = Throttle(FIGURE_INTERVAL_S)
    with parent.run_context():
        for child, outcome, is_new in _outcomes(config, starts, data, results_url):
            if isinstance(outcome, BaseException):
                failed.append(f"{child.name}: {outcome}")
                continue
            log_run(tracker, parent, child, outcome, key, lineage | _origin(starts[child.init]))
            rows.append(to_row(child, outcome, remark))
            remaining[child.split, child.fraction] -= 1
            if is_new:
                complete = False
                log_table(parent, rows)
                if figures.ready():
                    log_figures(parent, rows)
                if not remaining[child.split, child.fraction] and remaining.total():  # the caller prints the last table
                    tqdm.write(format_table(rows))
        if rows and not complete:
            log_results(parent, rows)
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(_children(config))} child runs failed:\n" + "\n".join(failed))
        if not complete:
            log_pages_and_curves(parent, rows)
    return sorted(rows, key=lambda r: (r["split"], r["init"], r["fraction"], r["seed"]))


def _origin(start: Initialization) -> dict[str, str]:
    """Return the origin of a run's weights as tags."""
    if not start.url:
        return {}
    tags = {"checkpoint_uri": start.url}
    if start.checkpoint:
        tags |= {
            "pretraining_run_id": start.checkpoint.mlflow_run_id,
            "pretraining_dataset_uri": start.checkpoint.dataset_url,
            "pretraining_dataset_hash": start.checkpoint.dataset_digest,
        }
    return tags


def _children(config: SweepConfig) -> list[SweepRun]:
    """List the child runs of a sweep in the order in which they start."""
    return [
        SweepRun(split, init, fraction, seed)
        for split in config.splits
        for fraction in config.fractions
        for seed in config.seeds
        for init in [*config.initializations, *config.extra_checkpoints]
    ]


def _outcomes(
    config: SweepConfig,
    starts: dict[str, Initialization],
    data: dict[int, LabeledClips],
    results_url: str,
) -> Iterator[tuple[SweepRun, Any, bool]]:
    """Yield (child run, outcome, is_new) for each child run, results of earlier starts first.

    The outcome is the result of `finetune_run`, or the exception that ended it. A new result is stored in
    `results_url` before it is yielded.
    """
    clips_refs = {number: ray.put(clips) for number, clips in data.items()}
    start_refs = {init: ray.put(start) for init, start in starts.items()}
    children, running = _children(config), dict[Any, SweepRun]()
    with progress_bar(total=len(children), unit="run", desc="sweep") as bar:
        queue = deque[SweepRun]()
        for child in children:
            url = join_url(results_url, f"{child.name}.json")
            if exists(url):
                bar.update()
                yield child, read_json(url), False
            else:
                queue.append(child)
        while queue or running:
            while queue and (config.workers == 1 or not running):  # two groups of workers could block each other
                child = queue.popleft()
                task = _launch(config, child, clips_refs[child.split], start_refs[child.init], results_url)
                running[task] = child
            (ready, *_), _ = ray.wait(list(running), num_returns=1)
            child = running.pop(ready)
            try:
                outcome = ray.get(ready)
            except ray.exceptions.RayError as error:
                bar.update()
                yield child, error, True
                continue
            bar.set_postfix_str(f"{child.name} {outcome['accuracy']:.1%}", refresh=False)
            bar.update()
            write_json(join_url(results_url, f"{child.name}.json"), outcome)
            yield child, outcome, True


def _launch(config: SweepConfig, child: SweepRun, clips: Any, start: Any, results_url: str) -> Any:
    """Start a child run and return a reference to its outcome; `clips` and `start` are references too."""
    use_gpu, labels = config.gpus > 0, train_labels()
    if config.workers == 1:
        task = ray.remote(num_cpus=config.cpus, num_gpus=config.gpus, max_retries=2, label_selector=labels)(
            finetune_run
        )
        return task.remote(child, clips, start, config.finetune, use_gpu)
    group: dict[str, Any] = {"workers": config.workers, "cpus": config.cpus, "scratch": f"{results_url}/workers"}
    coordinator = ray.remote(num_cpus=0, max_retries=2, label_selector=labels)(finetune_run_distributed)
    return coordinator.remote(child, [clips, start], config.finetune, use_gpu, **group)


def _starts(config: SweepConfig) -> dict[str, Initialization]:
    """Load the initial weights of every initialization and check that the networks fit the clips.

    Raises:
        InputError: a checkpoint is missing, cannot be loaded or does not fit.
    """
    needing = sorted(set(config.initializations) & PRETRAINED)
    if needing and not config.checkpoint:
        raise InputError(
            f"initializations contains {needing[0]}, which needs checkpoint=; without one, set initializations=[random]"
        )
    trained = {url: _trained(url) for url in {config.checkpoint, *config.extra_checkpoints.values()} if url}
    fresh = Initialization(trained[config.checkpoint].model if config.checkpoint else config.model)
    starts = {init: trained[config.checkpoint] if init in PRETRAINED else fresh for init in config.initializations}
    starts |= {init: trained[url] for init, url in config.extra_checkpoints.items()}
    for init, start in starts.items():
        require_matching_shape(start.model, config.video.clip, config.ucf101, "set video.clip.{key}={model}")
        if start.trunk is not None:
            loaded = f"all {len(start.trunk)} tensors of the trunk from {start.url}"
            print(f"init {init}: {loaded}; the head is initialized randomly", flush=True)
    return starts


def _trained(url: str) -> Initialization:
    """Load the discriminator's trunk of a run, a checkpoint, an exported folder or a .t7 file."""
    model, checkpoint = store.open_model(url)
    if model.discriminator is None:
        raise InputError(f"{url!r} holds no discriminator (architecture={model.config.architecture}): give a GAN")
    trunk = model.discriminator.get_submodule("trunk").state_dict()
    return Initialization(model.config, trunk, checkpoint.url if checkpoint else url, checkpoint)


def _register(config: SweepConfig, digest: str, starts: dict[str, Initialization]) -> str:
    """Register the sweep and its initializations, and return the sweep's key.

    Each initialization has a record of its own, so that a sweep can be extended by further ones.

    Raises:
        InputError: earlier child runs had other settings, or an initialization had other weights.
    """
    url = join_url(config.out, config.name)
    settings = {"finetune": asdict(config.finetune), "data": digest} | _test_settings(config)
    key = register_run(url, config.name, settings)
    for init, start in starts.items():
        register_run(join_url(url, "inits", init), init, {"model": asdict(start.model), "checkpoint": start.url})
    return key
