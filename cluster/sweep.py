"""The label-fraction sweep: an MLflow parent run, a child run per (init, fraction, seed, split), in parallel on Ray."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from tqdm import tqdm

from cluster.checkpoints import store
from cluster.child import INITS, PRETRAINED, Child, Start, run_child, run_child_on_workers
from cluster.dataset.manifest import Manifest
from cluster.observability.mlflow_tracker import Tracker
from cluster.observability.progress_bar import progress_bar
from cluster.observability.tracking_config import TrackingConfig
from cluster.runtime.placement import train_labels
from cluster.runtime.provenance import flatten, git_commit, redacted_settings
from cluster.runtime.ray_session import ray_session, require_resources
from cluster.runtime.run_registry import check_name, register_run
from cluster.storage.files import exists, make_writable_folder, read_json, write_json
from cluster.storage.urls import join_url
from cluster.sweep_record import log_child, log_finished, log_results, row_of, table
from cluster.transfer import LabelledClips, dataset_url, load_split, prepare_labelled, require_unseen, windows
from vgan.errors import InputError
from vgan.models.config import ModelConfig
from vgan.options import check_choice, option, section
from vgan.presets import FINETUNE_PRESETS
from vgan.transfer.config import FinetuneConfig
from vgan.transfer.label_subsets import FRACTIONS
from vgan.transfer.ucf101 import read_split
from vgan.video.config import ClipSpec, FilterConfig, PrescreenConfig, StabilizeConfig, VideoConfig


def _labelled_video() -> VideoConfig:
    """One clip a video, kept even where its camera cannot be followed, as the original did for UCF101.

    A labelled video is never turned away for what it shows: the protocol counts it.
    """
    return VideoConfig(
        clip=ClipSpec(max_per_video=1),
        screen=PrescreenConfig(min_contrast=0, max_frozen=0, min_activity=0),
        stabilize=StabilizeConfig(keep_failed=True),
        gates=FilterConfig(off=["still", "restless", "near_duplicate"]),
    )


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """One sweep over label fractions."""

    ucf101: str = option("", "folder that holds UCF-101/ and ucfTrainTestlist/ (required)")
    checkpoint: str = option(
        "", "a GAN: its run's folder, a checkpoint, an exported folder, a .t7 file; random inits take its size"
    )
    others: dict[str, str] = option(
        {}, "more checkpoints, each an init of its name: 'others={longer: out/runs/longer}'"
    )
    out: str = option("out/finetune", "folder for the labelled clips and the results")
    preset: str = option(
        "modern",
        "modern: settings chosen on held-out groups; reference: the published code's, 1,000 steps of 256 clips",
    )
    name: str = option("sweep", "name of the sweep; the same name continues, with more fractions or seeds too")
    dataset: str = option("ucf101", "name of the labelled set in metric names")
    inits: list[str] = option(
        ["vgan", "logistic", "random"], "; ".join(f"{name}: {text}" for name, text in INITS.items())
    )
    fractions: list[float] = option(list(FRACTIONS), "shares of each class's training clips, nested")
    seeds: list[int] = option([0, 1], "each draws its own subsets, order and head")
    splits: list[int] = option([1], "official splits, 1 to 3")
    test_clips: int = option(1, "of each test video: 1, its first frames, or more, evenly spread; e.g. 10")
    choose: bool = option(False, "test on groups held out from the training list, to choose settings by")
    fold: int = option(0, "with choose, which groups: 0, 1, ... each hold out another fifth, drawn at random")
    allow_leak: bool = option(False, "go on where the checkpoint has seen test videos, or that cannot be told")
    seed: int = option(0, "of the clips' packing order")
    workers: int = option(1, "Ray Train workers a run that share each batch, for large ones; runs then take turns")
    cpus: float = option(1.0, "CPU cores a run (and worker); as many runs at once as there is room for")
    gpus: float = option(
        0.0, "GPUs a run, 0.25 for four on one; 0 computes on CPUs; of several workers each has a whole one"
    )
    address: str = option("", "Ray cluster; empty: the one this job was submitted to, else a local one")
    finetune: FinetuneConfig = section(FinetuneConfig, "optimization")
    model: ModelConfig = section(ModelConfig, "the network where no checkpoint is given")
    video: VideoConfig = section(_labelled_video, "video to clips")
    tracking: TrackingConfig = section(TrackingConfig, "MLflow")

    def __post_init__(self) -> None:
        check_choice("preset", self.preset, tuple(FINETUNE_PRESETS))
        for init in self.inits:
            check_choice("inits", init, tuple(INITS))
        if taken := sorted(set(self.others) & set(INITS)):
            raise ValueError(f"others must have names of their own, got {taken[0]}")
        for name in self.others:
            check_name(name)
        if self.test_clips < 1 or self.fold < 0:
            got = f"got {self.test_clips} and {self.fold}"
            raise ValueError(f"test_clips must be at least 1 and fold at least 0, {got}")
        if self.fold and not self.choose:
            raise ValueError(f"fold={self.fold} needs choose=true")
        if self.workers < 1 or self.finetune.batch_size < 2 * self.workers:  # batch norm needs two clips
            got = f"got {self.workers} and {self.finetune.batch_size}"
            raise ValueError(f"workers must be at least 1 and finetune.batch_size at least twice that, {got}")
        if self.cpus <= 0 or self.gpus < 0:
            raise ValueError(f"cpus must be above 0 and gpus 0 or more, got {self.cpus} and {self.gpus}")
        if any(not 0 < f <= 1 for f in self.fractions):
            raise ValueError(f"fractions must be above 0 and at most 1, got {self.fractions}")
        if any(s not in (1, 2, 3) for s in self.splits):
            raise ValueError(f"splits must be among 1, 2, 3, got {self.splits}")
        for key in ("inits", "fractions", "seeds", "splits"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise ValueError(f"{key} must name each value once, got {getattr(self, key)}")
        if not (self.inits and self.fractions and self.seeds and self.splits):
            raise ValueError("inits, fractions, seeds and splits must each name at least one value")
        check_name(self.name)


def sweep(config: SweepConfig) -> list[dict[str, Any]]:
    """Run every child that has no result yet, and return all results as rows.

    Raises:
        InputError: missing data, no checkpoint for an init that needs one, one whose shape does not fit the clips, or one
            that has seen test videos.
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
    remarks = {require_unseen(config.ucf101, config.splits, *dataset, config.allow_leak) for dataset in sorted(seen)}
    tracker = Tracker(config.tracking.uri, config.tracking.experiment or "transfer")
    tracker.experiment_id()  # a tracking server that cannot be used is told before the work, not after
    make_writable_folder(config.out)
    with ray_session(config.address) as alone:
        if alone:
            require_resources("a run", " or workers=", cpus=config.workers * config.cpus, gpus=config.gpus)
        clips_url = dataset_url(config.out, config.test_clips)
        video = windows(config.video, config.test_clips)
        manifest = prepare_labelled(config.ucf101, config.splits, clips_url, video, seed=config.seed)
        tests: dict[str, Any] = {"test_clips": config.test_clips, "choose": config.choose, "fold": config.fold}
        data = {s: load_split(config.ucf101, s, clips_url, manifest, config.dataset, **tests) for s in config.splits}
        for number, clips in data.items():
            print(f"split {number}: {clips.summary()}", flush=True)
        return _run_children(config, tracker, starts, manifest, data, "; ".join(filter(None, sorted(remarks))))


def _run_children(
    config: SweepConfig,
    tracker: Tracker,
    starts: dict[str, Start],
    manifest: Manifest,
    data: dict[int, LabelledClips],
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
    url = dataset_url(config.out, config.test_clips)
    parent.dataset(name=config.dataset, digest=manifest.digest, url=url, context="transfer")
    rows: list[dict[str, Any]] = []
    failed = []
    left = Counter((child.split, child.fraction) for child in _children(config))
    with parent.ending():
        for child, outcome, new in _outcomes(config, starts, data, results_url):
            if isinstance(outcome, BaseException):
                failed.append(f"{child.name}: {outcome}")
                continue
            log_child(tracker, parent, child, outcome, key, lineage | _origin(starts[child.init]))
            rows.append(row_of(child, outcome, remark))
            left[child.split, child.fraction] -= 1
            if new:  # an earlier start of the sweep has drawn the others
                log_results(parent, rows)
                if not left[child.split, child.fraction] and left.total():  # the whole table comes at the end
                    tqdm.write(table(rows))
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(_children(config))} children failed:\n" + "\n".join(failed))
        if not again:
            log_results(parent, rows)
            log_finished(parent, rows)
    return sorted(rows, key=lambda r: (r["split"], r["init"], r["fraction"], r["seed"]))


def _origin(start: Start) -> dict[str, str]:
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


def _children(config: SweepConfig) -> list[Child]:
    return [
        Child(split, init, fraction, seed)
        for split in config.splits
        for fraction in config.fractions
        for seed in config.seeds
        for init in [*config.inits, *config.others]
    ]


def _outcomes(
    config: SweepConfig,
    starts: dict[str, Start],
    data: dict[int, LabelledClips],
    results_url: str,
) -> Iterator[tuple[Child, Any, bool]]:
    """Each child with its result, or the error that ended it, and whether it is new: earlier results come first."""
    clips = {number: ray.put(found) for number, found in data.items()}
    begun = {init: ray.put(start) for init, start in starts.items()}
    children, waiting = _children(config), dict[Any, Child]()
    with progress_bar(total=len(children), unit="run", desc="sweep") as bar:
        queue = deque[Child]()
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


def _launch(config: SweepConfig, child: Child, clips: Any, start: Any, results_url: str) -> Any:
    """Start a child; the reference to its outcome. `clips` and `start` are references too."""
    use_gpu, where = config.gpus > 0, train_labels()
    if config.workers == 1:
        train = ray.remote(num_cpus=config.cpus, num_gpus=config.gpus, max_retries=2, label_selector=where)(run_child)
        return train.remote(child, clips, start, config.finetune, use_gpu)
    wide: dict[str, Any] = {"workers": config.workers, "cpus": config.cpus, "scratch": f"{results_url}/workers"}
    lead = ray.remote(num_cpus=0, max_retries=2, label_selector=where)(run_child_on_workers)
    return lead.remote(child, [clips, start], config.finetune, use_gpu, **wide)


def _starts(config: SweepConfig) -> dict[str, Start]:
    """What every init starts with, after a look that weights load and networks fit the clips.

    Raises:
        InputError: a checkpoint is missing or does not fit.
    """
    needing = sorted(set(config.inits) & PRETRAINED)
    if needing and not config.checkpoint:
        raise InputError(f"inits names {needing[0]}, so checkpoint= is required; or give inits=[random]")
    trained = {url: _trained(url) for url in {config.checkpoint, *config.others.values()} if url}
    fresh = Start(trained[config.checkpoint].model if config.checkpoint else config.model)
    starts = {init: trained[config.checkpoint] if init in PRETRAINED else fresh for init in config.inits}
    starts |= {init: trained[url] for init, url in config.others.items()}
    for init, start in starts.items():
        for key in ("num_frames", "size"):
            ours, theirs = getattr(config.video.clip, key), getattr(start.model, key)
            if ours != theirs:
                raise InputError(
                    f"the network takes clips of {key}={theirs}: set video.clip.{key}={theirs}, got {ours}"
                )
        if start.trunk is not None:
            told = f"all {len(start.trunk)} tensors of the trunk from {start.url}"
            print(f"init {init}: {told}; the head starts anew", flush=True)
    return starts


def _trained(url: str) -> Start:
    """The discriminator's trunk of a run, a checkpoint, an exported folder or a .t7 file."""
    model, checkpoint = store.open_model(url)
    if model.discriminator is None:
        raise InputError(f"{url!r} holds no discriminator (kind={model.config.kind}): give a GAN's")
    trunk = model.discriminator.get_submodule("trunk").state_dict()
    return Start(model.config, trunk, checkpoint.url if checkpoint else url, checkpoint)


def _claim(config: SweepConfig, digest: str, starts: dict[str, Start]) -> str:
    """The sweep's key, once it is certain that earlier children were made as those to come will be.

    Inits stand for themselves, so that more of them can join a sweep.

    Raises:
        InputError: they were made with other settings, or an init began with other weights.
    """
    url = join_url(config.out, config.name)
    pinned = {"finetune": asdict(config.finetune), "data": digest}
    tests = {"test_clips": config.test_clips, "choose": config.choose, "fold": config.fold}
    key = register_run(url, config.name, pinned | tests)
    for init, start in starts.items():
        register_run(join_url(url, "inits", init), init, {"model": asdict(start.model), "checkpoint": start.url})
    return key
