"""A cost plan as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.planning.cost_model import CostPlan


def format_plan(found: CostPlan) -> str:
    """Format a plan as a text table."""
    corpus = found.corpus
    lines = [
        f"{corpus.videos:,} videos, {corpus.hours:,.0f} h, {corpus.bytes / 1e12:,.3f} TB in ({corpus.told})",
        f"-> {found.clips:,} clips, {found.clip_hours:,.0f} h",
        "",
        f"{'stage':<12}{'core-hours':>12}{'GPU-hours':>12}{'wall hours':>12}  limited by",
        *(
            f"{s.name:<12}{s.core_hours:>12,.1f}{s.gpu_hours:>12,.1f}{s.wall_hours:>12,.1f}  {s.limit}"
            for s in found.stages
        ),
        f"{'all':<12}" + "".join(f"{found.total(f'{unit}_hours'):>12,.1f}" for unit in ("core", "gpu", "wall")),
        "",
        *_amounts("storage", found.storage_gb, "GB"),
        *_amounts("requests", found.requests, ""),
        *_amounts("money", found.money | {"all": sum(found.money.values())}, found.currency),
        "",
        f"bottleneck: {found.limits}",
        *found.remarks,
    ]
    return "\n".join(lines)


def _amounts(title: str, values: dict[str, Any], unit: str) -> Sequence[str]:
    return [f"{title + ', ' + name:<42}{value:>16,.0f} {unit}".rstrip() for name, value in values.items()]
