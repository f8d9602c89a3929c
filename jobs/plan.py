"""Work out what a corpus and a training on it will cost, before any of it begins."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from cluster.dataset.manifest import CODECS
from cluster.planning.calibration import Calibration, calibrate
from cluster.planning.config import CorpusConfig, MeasuredRates, NodeConfig, PriceConfig, read_rates
from cluster.planning.cost_model import CostPlan, corpus_for_hours, corpus_from_manifest, estimate_cost
from cluster.planning.report import format_plan
from cluster.runtime.provenance import redacted_settings
from cluster.storage.files import make_writable_folder, write_bytes, write_json
from cluster.storage.urls import absolute_url, join_url
from jobs import cli
from vgan.errors import InputError
from vgan.options import check_choice, option, section
from vgan.viz.plan_chart import plan_png

ABOUT = """Plan a corpus: videos, hours, bytes, core-hours, GPU-hours, time, storage, requests, money, and what limits.

  python -m jobs.plan hours=5000 cpu.count=4 cpu.cores=32 out=out/plan
  python -m jobs.plan sources=out/sources.parquet cpu.price=1.2 gpu.price=20 steps=100000 prices.gb_month=0.023
  python -m jobs.plan hours=5000 rates_file=rates.json corpus.origin=flickr
  python -m jobs.plan hours=5000 calibrate_from=out/clips      prepare's cost and yield as your own dataset took them

hours= counts hours of finished clips. Rates are the README's unless rates= names a JSON of yours. Prices are 0 until
you give them. Writes plan.json and plan.png.
"""


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What to plan: hours= or sources=, on which nodes, at which prices."""

    hours: float = option(0.0, "hours of finished clips that are wanted")
    sources: str = option("", "or: a sources manifest, list, folder or glob")
    rates_file: str = option("", "url of a JSON of measured rates with date and machine; empty: the README's")
    calibrate_from: str = option("", "url of a dataset whose commit records tell prepare's cost and yield")
    steps: int = option(0, "steps of training; 0 plans none")
    batch_size: int = option(64, "clips of a step, all workers together")
    codec: str = option("raw", "of the shards: raw or jpeg")
    out: str = option("out/plan", "url of the folder for plan.json and plan.png")
    corpus: CorpusConfig = section(CorpusConfig, "what videos are like, where no manifest tells")
    cpu: NodeConfig = section(NodeConfig, "nodes that prepare")
    gpu: NodeConfig = section(lambda: NodeConfig(gpus=1), "nodes that train")
    prices: PriceConfig = section(PriceConfig, "of the store")

    def __post_init__(self) -> None:
        check_choice("codec", self.codec, CODECS)
        if self.hours < 0 or self.steps < 0 or self.batch_size < 1:
            got = f"got {self.hours}, {self.steps} and {self.batch_size}"
            raise ValueError(f"hours and steps must be at least 0, batch_size at least 1, {got}")


def main(config: PlanConfig) -> None:
    """Plan, print the table, write JSON and picture."""
    if bool(config.hours) == bool(config.sources):
        raise InputError("give exactly one of hours= and sources=")
    rates = read_rates(absolute_url(config.rates_file)) if config.rates_file else MeasuredRates()
    checked = calibrate(absolute_url(config.calibrate_from), rates) if config.calibrate_from else None
    if checked:
        rates = replace(rates, clip_yield=checked.clip_yield or rates.clip_yield)
    corpus = (
        corpus_from_manifest(absolute_url(config.sources), config.corpus)
        if config.sources
        else corpus_for_hours(config.hours, config.corpus, rates)
    )
    found = estimate_cost(
        corpus,
        config.corpus,
        rates,
        config.cpu,
        config.gpu,
        config.prices,
        steps=config.steps,
        batch_size=config.batch_size,
        codec=config.codec,
        prepare_s=checked.prepare_s if checked else 0.0,
    )
    print(format_plan(found))
    if checked:
        print(_check_text(checked, config.calibrate_from))
    write(found, checked, config)


def _check_text(checked: Calibration, url: str) -> str:
    return (
        f"{url}: {checked.source_hours:.3f} h took {checked.core_s:,.0f} core-seconds, the rates say "
        f"{checked.planned_s:,.0f} ({checked.error:+.0%}); yield {checked.clip_yield:.0%}"
    )


def write(found: CostPlan, checked: Calibration | None, config: PlanConfig) -> None:
    """Write plan.json and plan.png."""
    out = absolute_url(config.out)
    make_writable_folder(out)
    value = asdict(replace(found, settings=redacted_settings(config)))
    write_json(join_url(out, "plan.json"), value | {"checked": checked and asdict(checked)})
    panels = {
        "core-hours": {stage.name: stage.core_hours for stage in found.stages if stage.core_hours},
        "wall hours": {stage.name: stage.wall_hours for stage in found.stages},
        "GB": found.storage_gb,
        found.currency: found.money,
    }
    title = f"{found.clip_hours:,.0f} h of clips of {found.corpus.videos:,} videos; limited by {found.limits}"
    write_bytes(join_url(out, "plan.png"), plan_png(panels, title))
    print(f"-> {out}/plan.json, {out}/plan.png")


if __name__ == "__main__":
    raise SystemExit(cli.run(main, PlanConfig, ABOUT))
