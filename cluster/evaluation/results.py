"""Output of an evaluation: a text table, JSON, and one MLflow run per row."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

from cluster.evaluation.config import EXPERIMENT, EvaluateConfig
from cluster.evaluation.evaluate import Evaluation, EvaluationRow
from cluster.observability.mlflow_tracker import Tracker
from cluster.runtime.provenance import git_commit
from cluster.storage.files import json_bytes
from vgan.metrics.frechet import Interval, statistic_name

# Lines of the table by metric prefix: heading, meaning, display factor.
LINES = {
    "fvd": ("fvd", "Fréchet distance of features to the reference; lower is better", 1.0),
    "fvd-bias": ("bias", "approximate part of fvd due to the finite number of clips", 1.0),
    "kvd": ("kvd", "kernel distance, unbiased for any number of clips", 1.0),
    "motion": ("motion", "mean absolute difference of consecutive frames, 0..255", 1.0),
    "frequency": ("frequency", "mean of the temporal spectrum, cycles per frame", 1.0),
    "flicker": ("flicker", "flicker of the half of the pixels that vary least, 0..255", 1.0),
    "diversity": ("diversity", "standard deviation over clips, 0..255", 1.0),
    "mask-mean": ("mask", "mean of the mask, 0..1", 1.0),
    "mask-decided": ("decided", "share of the mask within 0.1 of 0 or 1", 1.0),
    "mask-follows": ("follows", "correlation of the mask with motion, over pixels", 1.0),
    "copies": (
        "copies",
        "clips with a smaller distance ratio of nearest to next training video than 19 in 20 real clips of others, %",
        100.0,
    ),
}


def metric_kind(name: str) -> str:
    """Return the metric prefix of a full metric name, e.g. fvd of fvd256_i3d400-r224_ucf101_32f."""
    return name.partition("_")[0].rstrip("0123456789")


def metrics_by_kind(found: Evaluation) -> dict[str, list[str]]:
    """Return the full metric names of each line with a value, by metric prefix in table order."""
    names: dict[str, list[str]] = {}
    for row in found.rows:
        for name in row.metrics:
            full_names = names.setdefault(metric_kind(name), [])
            full_names += [name] if name not in full_names else []
    return {prefix: names[prefix] for prefix in LINES if prefix in names}


def table_cells(found: Evaluation) -> list[list[str]]:
    """Return the cells of the table: a header with the row names, then one line per metric, heading first."""
    names = metrics_by_kind(found)
    lines = [["", *(row.name for row in found.rows)]]
    for prefix in names:
        values = [{metric_kind(name): value for name, value in row.metrics.items()}.get(prefix) for row in found.rows]
        lines.append([LINES[prefix][0], *(_cell(value, LINES[prefix][2]) for value in values)])
    return lines


def footnotes(found: Evaluation) -> list[str]:
    """Return notes on the set sizes, the reference and the limits of the numbers, then remarks on rows."""
    protocol = found.protocol
    classes = f" of {protocol['reference_classes']} classes" if protocol["reference_classes"] else ""
    videos = f"{protocol['reference_videos']} videos{classes}"
    digests = f"set {protocol['reference_set_digest']} of dataset {protocol['dataset_digest'][:16]}"
    lines = [f"{protocol['num']} clips per row, against {protocol['reference']}: {videos}, {digests}"]
    if protocol["extractor"] is None:
        lines.append("no distances: extractor= is empty (vgan/metrics/extractors.py lists the accepted files)")
    elif protocol["num_features"] >= protocol["num"]:
        lines.append(
            f"{protocol['num']} clips for {protocol['num_features']} features: the Fréchet distance has a larger "
            "upward bias than stated and is comparable only with others of the same name"
        )
    return lines + [f"{row.name}: {row.remark}" for row in found.rows if row.remark]


def format_table(found: Evaluation) -> str:
    """Format the results as text: one column per row, one line per metric, then meanings, full names and notes."""
    lines = table_cells(found)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        "  ".join([name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]).rstrip()
        for name, *rest in lines
    ]
    meanings = [f"{LINES[p][0]}: {LINES[p][1]}; {', '.join(names)}" for p, names in metrics_by_kind(found).items()]
    return "\n".join([*aligned, "", *meanings, "", *(f"note: {line}" for line in footnotes(found))])


def to_json(found: Evaluation) -> dict[str, Any]:
    """Return protocol and rows as JSON values; unknown (non-finite) numbers become null."""
    return {"protocol": found.protocol, "rows": [_plain(row) for row in found.rows]}


def log_evaluation(found: Evaluation, config: EvaluateConfig, page: str = "") -> None:
    """Log every row except the reference as an MLflow run; the same row under the same protocol reuses its run."""
    tracker = Tracker(config.tracking.uri, config.tracking.experiment or EXPERIMENT)
    text = format_table(found)
    for row in found.rows[1:]:
        identity = json_bytes([row.name, row.lineage, found.protocol])
        key = hashlib.sha256(identity).hexdigest()[:32]
        tags = {"kind": "evaluation", "judged": row.kind, "git_commit": git_commit(), **row.lineage}
        tags |= {"reference_set_digest": found.protocol["reference_set_digest"], "remark": row.remark}
        run = tracker.start(
            key, name=row.name, params=found.protocol, tags={key: value for key, value in tags.items() if value}
        )
        with run.run_context():
            source = {"digest": found.protocol["dataset_digest"], "url": found.protocol["dataset_uri"]}
            run.dataset(name=found.protocol["reference"], context="evaluation", **source)
            run.metrics(dict(_scalars(row.metrics)))
            spectrum = statistic_name(
                "spectrum", num=row.num, resolution=found.protocol["size"], num_frames=found.protocol["num_frames"]
            )
            run.log_series(spectrum, row.spectrum)  # steps are cycles per clip
            run.text(json_bytes({"protocol": found.protocol, **_plain(row)}).decode(), "result.json")
            run.text(text + "\n", "table.txt")
            if page:
                run.text(page, "card.html")


def _scalars(metrics: dict[str, Interval]) -> Sequence[tuple[str, float]]:
    parts = [
        (f"{name}{end}", value)
        for name, interval in metrics.items()
        for end, value in zip(("", "/low", "/high"), interval, strict=True)
    ]
    return [(name, value) for name, value in parts if math.isfinite(value)]


def _plain(row: EvaluationRow) -> dict[str, Any]:
    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "name": row.name,
        "kind": row.kind,
        "num": row.num,
        "metrics": {
            name: {key: number(value) for key, value in interval._asdict().items()}
            for name, interval in row.metrics.items()
        },
        "spectrum": row.spectrum,
        "lineage": row.lineage,
        "remark": row.remark,
        "nearest": [{"drawn": i, "training_row": j, "distance": number(d)} for i, j, d in row.copies],
    }


def _cell(value: Interval | None, scale: float = 1.0) -> str:
    if value is None or math.isnan(value.value):
        return "-"
    middle, low, high = (_short(scale * part) for part in value)
    return middle if math.isnan(value.low) else f"{middle} ({low} to {high})"


def _short(value: float) -> str:
    """Format a number with three significant digits, without an exponent."""
    if math.isnan(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 or value == 0 else f"{value:.3f}"
