"""Run a preference study with human raters."""

from __future__ import annotations

from cluster.study.config import StudyConfig
from jobs import cli

ABOUT = """Two videos side by side, "Which video is more realistic?", the paper's Table 1. Make a study of folders of
generated clips and real ones, each with a folder per category, and hand out a link to each rater:

  python -m jobs.study action=make real=out/real categories=[golf,beach] \
      "methods={two_stream: out/two, one_stream: out/one}"
  python -m jobs.study action=links raters=50 address=https://study.example.org
  python -m jobs.study action=serve port=8000
  python -m jobs.study action=report

The same on Mechanical Turk: upload the study's clips/ to media_url=, and give back the results:

  python -m jobs.study action=export media_url=https://bucket.example.org/clips
  python -m jobs.study action=import results=Batch_1_batch_results.csv
"""


def main(config: StudyConfig) -> None:
    """Run a preference study with human raters."""
    from cluster.study.actions import run_action  # heavy, after the arguments are checked

    run_action(config)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, StudyConfig, ABOUT))
