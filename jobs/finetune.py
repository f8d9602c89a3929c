"""Fine-tune on labelled actions over label fractions, and compare initializations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cluster.transfer.config import SweepConfig
from jobs import cli
from vgan.errors import InputError
from vgan.options import check_choice, check_name, option, require_options

ABOUT = """Train on labelled actions from each init at each label fraction, seed and split, and compare: an MLflow
parent run, one child run each, the paper's figure 4. Run again after an interruption: finished children are not run
twice.

  python -m jobs.finetune ucf101=/data/ucf101 checkpoint=out/runs/gan out=out/finetune
  python -m jobs.finetune ucf101=/data/ucf101 initializations=random fractions=[0.125,1] seeds=[0,1,2]
  python -m jobs.finetune ucf101=/data/ucf101 checkpoint=... splits=[1,2,3] fractions=1 clips_per_test_video=10

Choose settings without a look at the test list, on groups held out from the training list:

  python -m jobs.finetune ucf101=/data/ucf101 checkpoint=... validation=true name=choose finetune.learning_rate=5e-4

Draw a sweep's figures and table again from MLflow alone, or two sweeps in one:

  python -m jobs.finetune action=report sweep=sweep tracking.uri=http://mlflow:5000
  python -m jobs.finetune action=report sweep=[short,long] out=out/compared
"""
ACTIONS = ("run", "report")


@dataclass(frozen=True, kw_only=True)
class FinetuneJobConfig(SweepConfig):
    """A sweep, or what is asked of one."""

    action: str = option("run", f"one of {', '.join(ACTIONS)}", "common")
    sweep: list[str] = option([], "with action=report: names of the sweeps", "common")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("action", self.action, ACTIONS)
        for name in self.sweep:
            check_name(name)


def main(config: FinetuneJobConfig) -> None:
    """Do what `config.action` says."""
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
    """Draw a sweep, or several, from what MLflow holds; figures go into out=, of one sweep also onto its parent run."""
    from cluster.observability.mlflow_tracker import Tracker  # heavy, after the arguments are checked
    from cluster.storage.urls import absolute_url
    from cluster.transfer.sweep_results import format_table, load_sweep, log_final_figures, log_results, write_figures

    require_options(config, "sweep", "out")
    if "://" in config.out:
        raise InputError(f"out={config.out!r} must be a local folder with action=report")
    out = Path(absolute_url(config.out)) / "-".join(config.sweep)
    tracker = Tracker(config.tracking.uri, config.tracking.experiment or "transfer")
    parent, rows = load_sweep(tracker, config.sweep)
    if len(config.sweep) == 1:
        log_results(parent, rows)
        log_final_figures(parent, rows)
    for path in write_figures(rows, out):
        print(path)
    print(format_table(rows))


if __name__ == "__main__":
    raise SystemExit(cli.run(main, FinetuneJobConfig, ABOUT))
