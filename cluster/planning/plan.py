"""A plan: computed, printed and written."""

from __future__ import annotations

from dataclasses import asdict, replace

from cluster.planning.calibration import Calibration, calibrate
from cluster.planning.config import MeasuredRates, PlanConfig
from cluster.planning.cost_model import CostPlan, corpus_for_hours, corpus_from_manifest, estimate_cost
from cluster.planning.rates import read_rates
from cluster.planning.report import format_plan
from cluster.runtime.provenance import redacted_settings
from cluster.storage.files import make_writable_folder, write_bytes, write_json
from cluster.storage.urls import absolute_url, join_url
from vgan.errors import InputError
from vgan.viz.plan_chart import plan_png


def write_plan(config: PlanConfig) -> None:
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
    _write(found, checked, config)


def _check_text(checked: Calibration, url: str) -> str:
    return (
        f"{url}: {checked.source_hours:.3f} h took {checked.core_s:,.0f} core-seconds, the rates say "
        f"{checked.planned_s:,.0f} ({checked.error:+.0%}); yield {checked.clip_yield:.0%}"
    )


def _write(found: CostPlan, checked: Calibration | None, config: PlanConfig) -> None:
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
