"""Estimate what a corpus and a training run on it will cost."""

from __future__ import annotations

from cluster.planning.config import PlanConfig
from jobs import cli

ABOUT = """Plan a corpus: videos, hours, bytes, core-hours, GPU-hours, time, storage, requests, money, and what limits.

  python -m jobs.plan hours=5000 cpu.count=4 cpu.cores=32 out=out/plan
  python -m jobs.plan sources=out/sources.parquet cpu.price=1.2 gpu.price=20 steps=100000 prices.gb_month=0.023
  python -m jobs.plan hours=5000 rates_file=rates.json corpus.origin=flickr
  python -m jobs.plan hours=5000 calibrate_from=out/clips      prepare's cost and yield as your own dataset took them

hours= counts hours of finished clips. Rates are the README's unless rates= names a JSON of yours. Prices are 0 until
you give them. Writes plan.json and plan.png.
"""


def main(config: PlanConfig) -> None:
    """Estimate what a corpus and a training run on it will cost."""
    from cluster.planning.plan import write_plan  # heavy, after the arguments are checked

    write_plan(config)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, PlanConfig, ABOUT))
