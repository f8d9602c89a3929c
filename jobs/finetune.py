"""Job that fine-tunes on labeled actions at several label fractions and compares initializations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cluster.transfer.config import SweepConfig
from jobs import cli
from vgan.errors import InputError
from vgan.options import check_choice, check_name, option, require_options

ABOUT = """Fine-tune on labeled actions for each initialization, label fraction, seed and split, and compare them (the
paper's figure 4): one MLflow parent run, one child run per combination. After an interruption, run it again to
resume; finished child runs are not repeated.

  python -m jobs.finetune ucf101=/data/ucf101 checkpoint=out/runs/gan out=out/finetune
  python -m jobs.finetune ucf101=/data/ucf101 initializations=random fractions=[0.125,1] seeds=[0,1,2]
  python -m jobs.finetune ucf101=/data/ucf101 checkpoint=... splits=[1,2,3] fractions=1 clips_per_test_video=10

Choose settings without the test list, on groups held out from the training list:

  python -m jobs.finetune ucf101=/data/ucf101 checkpoint=... validation=true name=choose finetune.learning_rate=5e-4

Redraw the figures and the table of a sweep, or of two sweeps together, from MLflow alone:

  python -m jobs.finetune action=report sweep=sweep tracking.uri=http://mlflow:5000
  python -m jobs.finetune action=report sweep=[short,long] out=out/compared
"""
ACTIONS = ("run", "report")


@dataclass(frozen=True, kw_only=True)
class FinetuneJobConfig(SweepConfig):
    """Settings of a sweep and its action."""

    action: str = option("run", "run: start or resume a sweep; report: redraw figures and table from MLflow", "common")
    sweep: list[str] = option([], "names of the sweeps for action=report", "common")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("action", self.action, ACTIONS)
        for name in self.sweep:
            check_name(name)


def main(config: FinetuneJobConfig) -> None:
    """Run a sweep, or report one for action=report."""
    if config.action == "report":
        report(config)
        return
    from cluster.runtime.provenance import save_settings  # heavy, after the arguments are checked
    from cluster.storage.files import write_json
    from cluster.storage.urls import absolute_url, join_url
    from cluster.transfer.sweep import sweep
    from cluster.transfer.sweep_results import format_table

    require_options(config, "ucf101", "out")
    config = replace(
        config,
        ucf101=absolute_url(config.ucf101),
        out=absolute_url(config.out),
        checkpoint=config.checkpoint and absolute_url(config.checkpoint),
        extra_checkpoints={name: absolute_url(url) for name, url in config.extra_checkpoints.items()},
    )
    rows = sweep(config)
    save_settings(config, join_url(config.out, config.name, "settings.yaml"))
    write_json(join_url(config.out, config.name, "results.json"), rows)
    print(format_table(rows))


def report(config: FinetuneJobConfig) -> None:
    """Redraw sweeps from MLflow into out=; log the figures of a single sweep to its parent run too."""
    from cluster.observability.mlflow_tracker import Tracker  # heavy, after the arguments are checked
    from cluster.storage.urls import absolute_url
    from cluster.transfer.sweep_results import (
        format_table,
        load_sweep,
        log_pages_and_curves,
        log_results,
        write_figures,
    )

    require_options(config, "sweep", "out")
    if "://" in config.out:
        raise InputError(f"out={config.out!r} must be a local folder with action=report")
    out = Path(absolute_url(config.out)) / "-".join(config.sweep)
    tracker = Tracker(config.tracking.uri, config.tracking.experiment or "transfer")
    parent, rows = load_sweep(tracker, config.sweep)
    if len(config.sweep) == 1:
        log_results(parent, rows)
        log_pages_and_curves(parent, rows)
    for path in write_figures(rows, out):
        print(path)
    print(format_table(rows))


if __name__ == "__main__":
    raise SystemExit(cli.run(main, FinetuneJobConfig, ABOUT))
