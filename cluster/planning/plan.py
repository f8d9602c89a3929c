"""Cost plan: computation, printed table and files."""

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
    """Compute a cost plan, print its table, and write plan.json and plan.png into `config.out`.

    Raises:
        InputError: not exactly one of `hours` and `sources`, or an unreadable input.
    """
    if bool(config.hours) == bool(config.sources):
        raise InputError("give exactly one of hours= and sources=")
    rates = read_rates(absolute_url(config.rates_file)) if config.rates_file else MeasuredRates()
    calibration = calibrate(absolute_url(config.calibrate_from), rates) if config.calibrate_from else None
    if calibration:
        rates = replace(rates, clip_yield=calibration.clip_yield or rates.clip_yield)
    corpus = (
        corpus_from_manifest(absolute_url(config.sources), config.corpus)
        if config.sources
        else corpus_for_hours(config.hours, config.corpus, rates)
    )
    plan = estimate_cost(
        corpus,
        config.corpus,
        rates,
        config.cpu,
        config.gpu,
        config.prices,
        steps=config.steps,
        batch_size=config.batch_size,
        codec=config.codec,
        prepare_s=calibration.prepare_s if calibration else 0.0,
    )
    print(format_plan(plan))
    if calibration:
        print(_calibration_text(calibration, config.calibrate_from))
    _write(plan, calibration, config)


def _calibration_text(calibration: Calibration, url: str) -> str:
    return (
        f"{url}: {calibration.source_hours:.3f} h of video took {calibration.core_s:,.0f} core-seconds, predicted "
        f"{calibration.planned_s:,.0f} ({calibration.error:+.0%}); yield {calibration.clip_yield:.0%}"
    )


def _write(plan: CostPlan, calibration: Calibration | None, config: PlanConfig) -> None:
    """Write plan.json and plan.png."""
    out = absolute_url(config.out)
    make_writable_folder(out)
    value = asdict(replace(plan, settings=redacted_settings(config)))
    write_json(join_url(out, "plan.json"), value | {"checked": calibration and asdict(calibration)})
    panels = {
        "core-hours": {stage.name: stage.core_hours for stage in plan.stages if stage.core_hours},
        "wall hours": {stage.name: stage.wall_hours for stage in plan.stages},
        "GB": plan.storage_gb,
        plan.currency: plan.money,
    }
    title = f"{plan.clip_hours:,.0f} h of clips of {plan.corpus.videos:,} videos; limited by {plan.limits}"
    write_bytes(join_url(out, "plan.png"), plan_png(panels, title))
    print(f"-> {out}/plan.json, {out}/plan.png")
