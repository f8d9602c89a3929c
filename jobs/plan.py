"""Job that estimates the cost of a corpus and of a training run on it."""

from __future__ import annotations

from cluster.planning.config import PlanConfig
from jobs import cli

ABOUT = """Estimate the cost of a corpus and of training on it: videos, hours, bytes, core-hours, GPU-hours, wall time,
storage, requests, money and the bottleneck.

  python -m jobs.plan hours=5000 cpu.count=4 cpu.cores=32 out=out/plan
  python -m jobs.plan sources=out/sources.parquet cpu.price=1.2 gpu.price=20 steps=100000 prices.gb_month=0.023
  python -m jobs.plan hours=5000 rates_file=rates.json corpus.origin=flickr
  python -m jobs.plan hours=5000 calibrate_from=out/clips      cost and yield measured on your own dataset

hours= counts hours of finished clips. Rates are those of the README unless rates_file= is given; prices default to 0.
Writes plan.json and plan.png.
"""


def main(config: PlanConfig) -> None:
    """Estimate the cost of a corpus and of a training run on it."""
    from cluster.planning.plan import write_plan  # heavy, after the arguments are checked

    write_plan(config)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, PlanConfig, ABOUT))
