"""Job that runs a preference study with human raters."""

from __future__ import annotations

from cluster.study.config import StudyConfig
from jobs import cli

ABOUT = """Run a two-alternative preference study with human raters (the paper's table 1): two videos side by side,
"Which video is more realistic?". Make a study from folders of generated and of real clips, each with one folder per
category; send each rater one link; serve the study; report the votes:

  python -m jobs.study action=make real=out/real categories=[golf,beach] \\
      "methods={two_stream: out/two, one_stream: out/one}"
  python -m jobs.study action=links raters=50 address=https://study.example.org
  python -m jobs.study action=serve port=8000
  python -m jobs.study action=report

On Mechanical Turk: upload the study's clips/ to media_url=, create the batch from the exported files, and import its
results:

  python -m jobs.study action=export media_url=https://bucket.example.org/clips
  python -m jobs.study action=import results=Batch_1_batch_results.csv
"""


def main(config: StudyConfig) -> None:
    """Run an action of a preference study."""
    from cluster.study.actions import run_action  # heavy, after the arguments are checked

    run_action(config)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, StudyConfig, ABOUT))
