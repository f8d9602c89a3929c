"""The label-fraction sweep: an MLflow parent run, a child run per (init, fraction, seed, split), in parallel on Ray."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
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
from cluster.runtime.provenance import flatten, git_commit, redacted_settings
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
from cluster.transfer.sweep_results import format_table, log_final_figures, log_results, log_run, to_row
from cluster.transfer.sweep_run import Initialization, SweepRun, finetune_run, finetune_run_distributed
from vgan.errors import InputError
from vgan.transfer.ucf101 import read_split


def sweep(config: SweepConfig) -> list[dict[str, Any]]:
    """Run every child that has no result yet, and return all results as rows.

    Raises:
        InputError: missing data, no checkpoint for an init that needs one, one whose shape does not fit the clips, or
            one that has seen test videos.
        RuntimeError: children failed; the others' results are kept.
    """
    starts = _starts(config)
    for number in config.splits:
        read_split(Path(config.ucf101), number)  # a folder that is not UCF101 is told before Ray starts
    seen = {
        (s.checkpoint.dataset_url, s.checkpoint.dataset_digest) if s.checkpoint else ("", "")
        for s in starts.values()
        if s.url
    }
    remarks = {
        require_no_leakage(config.ucf101, config.splits, *dataset, config.allow_test_leakage)
        for dataset in sorted(seen)
    }
    tracker = Tracker(config.tracking.uri, config.tracking.experiment or "transfer")
    tracker.experiment_id()  # a tracking server that cannot be used is told before the work, not after
    make_writable_folder(config.out)
    with ray_session(config.address) as alone:
        if alone:
            require_resources("a run", " or workers=", cpus=config.workers * config.cpus, gpus=config.gpus)
        clips_url = labeled_dataset_url(config.out, config.clips_per_test_video)
        video = config_for_test_clips(config.video, config.clips_per_test_video)
        manifest = prepare_labeled_dataset(config.ucf101, config.splits, clips_url, video, seed=config.seed)
        tests: dict[str, Any] = {
            "test_clips": config.clips_per_test_video,
            "choose": config.validation,
            "fold": config.validation_fold,
        }
        data = {
            s: load_labeled_split(config.ucf101, s, clips_url, manifest, config.dataset, **tests) for s in config.splits
        }
        for number, clips in data.items():
            print(f"split {number}: {clips.summary()}", flush=True)
        return _run_children(config, tracker, starts, manifest, data, "; ".join(filter(None, sorted(remarks))))


def _run_children(
    config: SweepConfig,
    tracker: Tracker,
    starts: dict[str, Initialization],
    manifest: Manifest,
    data: dict[int, LabeledClips],
    remark: str,
) -> list[dict[str, Any]]:
    """Run the children under one MLflow parent run."""
    results_url = join_url(config.out, config.name)
    key = _claim(config, manifest.digest, starts)
    lineage = {
        "sweep_id": key,
        "dataset_hash": manifest.digest,
        "git_commit": git_commit(),
        "remark": remark,
    }
    again = tracker.finished(key)
    parent = tracker.start(
        key, name=config.name, params=flatten(redacted_settings(config)), tags={"kind": "sweep", **lineage}
    )
    url = labeled_dataset_url(config.out, config.clips_per_test_video)
    parent.dataset(name=config.dataset, digest=manifest.digest, url=url, context="transfer")
    rows: list[dict[str, Any]] = []
    failed = []
    left = Counter((child.split, child.fraction) for child in _children(config))
    with parent.ending():
        for child, outcome, new in _outcomes(config, starts, data, results_url):
            if isinstance(outcome, BaseException):
                failed.append(f"{child.name}: {outcome}")
                continue
            log_run(tracker, parent, child, outcome, key, lineage | _origin(starts[child.init]))
            rows.append(to_row(child, outcome, remark))
            left[child.split, child.fraction] -= 1
            if new:  # an earlier start of the sweep has drawn the others
                log_results(parent, rows)
                if not left[child.split, child.fraction] and left.total():  # the whole table comes at the end
                    tqdm.write(format_table(rows))
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(_children(config))} children failed:\n" + "\n".join(failed))
        if not again:
            log_results(parent, rows)
            log_final_figures(parent, rows)
    return sorted(rows, key=lambda r: (r["split"], r["init"], r["fraction"], r["seed"]))


def _origin(start: Initialization) -> dict[str, str]:
    """Where a child's weights come from, as tags."""
    if not start.url:
        return {}
    known = start.checkpoint
    return {"checkpoint_uri": start.url} | (
        {
            "pretraining_run_id": known.mlflow_run_id,
            "pretraining_dataset_uri": known.dataset_url,
            "pretraining_dataset_hash": known.dataset_digest,
        }
        if known
        else {}
    )


def _children(config: SweepConfig) -> list[SweepRun]:
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
    """Each child with its result, or the error that ended it, and whether it is new: earlier results come first."""
    clips = {number: ray.put(found) for number, found in data.items()}
    begun = {init: ray.put(start) for init, start in starts.items()}
    children, waiting = _children(config), dict[Any, SweepRun]()
    with progress_bar(total=len(children), unit="run", desc="sweep") as bar:
        queue = deque[SweepRun]()
        for child in children:
            url = join_url(results_url, f"{child.name}.json")
            if exists(url):
                bar.update()
                yield child, read_json(url), False
            else:
                queue.append(child)
        while queue or waiting:
            while queue and (config.workers == 1 or not waiting):  # groups of workers would wait for each other
                child = queue.popleft()
                task = _launch(config, child, clips[child.split], begun[child.init], results_url)
                waiting[task] = child
            (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
            child = waiting.pop(ready)
            try:
                outcome = ray.get(ready)
            except ray.exceptions.RayError as fault:
                bar.update()
                yield child, fault, True
                continue
            bar.set_postfix_str(f"{child.name} {outcome['accuracy']:.1%}", refresh=False)
            bar.update()
            write_json(join_url(results_url, f"{child.name}.json"), outcome)
            yield child, outcome, True


def _launch(config: SweepConfig, child: SweepRun, clips: Any, start: Any, results_url: str) -> Any:
    """Start a child; the reference to its outcome. `clips` and `start` are references too."""
    use_gpu, where = config.gpus > 0, train_labels()
    if config.workers == 1:
        train = ray.remote(num_cpus=config.cpus, num_gpus=config.gpus, max_retries=2, label_selector=where)(
            finetune_run
        )
        return train.remote(child, clips, start, config.finetune, use_gpu)
    wide: dict[str, Any] = {"workers": config.workers, "cpus": config.cpus, "scratch": f"{results_url}/workers"}
    lead = ray.remote(num_cpus=0, max_retries=2, label_selector=where)(finetune_run_distributed)
    return lead.remote(child, [clips, start], config.finetune, use_gpu, **wide)


def _starts(config: SweepConfig) -> dict[str, Initialization]:
    """What every init starts with, after a look that weights load and networks fit the clips.

    Raises:
        InputError: a checkpoint is missing or does not fit.
    """
    needing = sorted(set(config.initializations) & PRETRAINED)
    if needing and not config.checkpoint:
        raise InputError(f"inits names {needing[0]}, so checkpoint= is required; or give initializations=[random]")
    trained = {url: _trained(url) for url in {config.checkpoint, *config.extra_checkpoints.values()} if url}
    fresh = Initialization(trained[config.checkpoint].model if config.checkpoint else config.model)
    starts = {init: trained[config.checkpoint] if init in PRETRAINED else fresh for init in config.initializations}
    starts |= {init: trained[url] for init, url in config.extra_checkpoints.items()}
    for init, start in starts.items():
        require_matching_shape(start.model, config.video.clip, config.ucf101, "set video.clip.{key}={model}")
        if start.trunk is not None:
            told = f"all {len(start.trunk)} tensors of the trunk from {start.url}"
            print(f"init {init}: {told}; the head starts anew", flush=True)
    return starts


def _trained(url: str) -> Initialization:
    """The discriminator's trunk of a run, a checkpoint, an exported folder or a .t7 file."""
    model, checkpoint = store.open_model(url)
    if model.discriminator is None:
        raise InputError(f"{url!r} holds no discriminator (architecture={model.config.architecture}): give a GAN's")
    trunk = model.discriminator.get_submodule("trunk").state_dict()
    return Initialization(model.config, trunk, checkpoint.url if checkpoint else url, checkpoint)


def _claim(config: SweepConfig, digest: str, starts: dict[str, Initialization]) -> str:
    """The sweep's key, once it is certain that earlier children were made as those to come will be.

    Inits stand for themselves, so that more of them can join a sweep.

    Raises:
        InputError: they were made with other settings, or an init began with other weights.
    """
    url = join_url(config.out, config.name)
    pinned = {"finetune": asdict(config.finetune), "data": digest}
    tests = {"test_clips": config.clips_per_test_video, "choose": config.validation, "fold": config.validation_fold}
    key = register_run(url, config.name, pinned | tests)
    for init, start in starts.items():
        register_run(join_url(url, "inits", init), init, {"model": asdict(start.model), "checkpoint": start.url})
    return key
