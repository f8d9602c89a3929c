"""What an evaluation leaves: a table for people, json for programs, an MLflow run for every row."""

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

# Lines of the table by a metric's own word: heading, meaning, what it is multiplied by to be shown.
LINES = {
    "fvd": ("fvd", "Fréchet distance of features from the reference; lower is nearer", 1.0),
    "fvd-bias": ("bias", "what of it the number of clips accounts for, roughly", 1.0),
    "kvd": ("kvd", "kernel distance, unbiased at any number", 1.0),
    "motion": ("motion", "mean difference of neighbouring frames, 0..255", 1.0),
    "frequency": ("frequency", "mean of the temporal spectrum, cycles a frame", 1.0),
    "flicker": ("flicker", "of the half of the pixels that vary least, 0..255", 1.0),
    "diversity": ("diversity", "standard deviation over clips, 0..255", 1.0),
    "mask-mean": ("mask", "mean of the mask, 0..1", 1.0),
    "mask-decided": ("decided", "share of the mask within 0.1 of 0 or 1", 1.0),
    "mask-follows": ("follows", "correlation of the mask with motion, over pixels", 1.0),
    "copies": (
        "copies",
        "clips nearer to one training video, over the next, than 19 in 20 real clips of others, %",
        100.0,
    ),
}


def metric_kind(name: str) -> str:
    """The metric's own word of a name that carries its protocol: fvd of fvd256_i3d400-r224_ucf101_32f."""
    return name.partition("_")[0].rstrip("0123456789")


def metrics_by_kind(found: Evaluation) -> dict[str, list[str]]:
    """The full names behind each line that has a value, in the table's order."""
    names: dict[str, list[str]] = {}
    for row in found.rows:
        for name in row.metrics:
            own = names.setdefault(metric_kind(name), [])
            own += [name] if name not in own else []
    return {word: names[word] for word in LINES if word in names}


def table_cells(found: Evaluation) -> list[list[str]]:
    """The table's cells: a line of the rows' names, then a line a metric, each with its heading first."""
    names = metrics_by_kind(found)
    lines = [["", *(row.name for row in found.rows)]]
    for word in names:
        own = [{metric_kind(name): value for name, value in row.metrics.items()}.get(word) for row in found.rows]
        lines.append([LINES[word][0], *(_cell(value, LINES[word][2]) for value in own)])
    return lines


def footnotes(found: Evaluation) -> list[str]:
    """What must be said beside the numbers."""
    protocol = found.protocol
    classes = f" of {protocol['reference_classes']} classes" if protocol["reference_classes"] else ""
    videos = f"{protocol['reference_videos']} videos{classes}"
    digests = f"set {protocol['reference_set_digest']} of dataset {protocol['dataset_digest'][:16]}"
    said = [f"{protocol['num']} clips a row, against {protocol['reference']}: {videos}, {digests}"]
    if protocol["extractor"] is None:
        said.append("no distances: extractor= names no file (vgan/metrics/extractors.py says which it takes)")
    elif protocol["num_features"] >= protocol["num"]:
        said.append(
            f"{protocol['num']} clips, no more than the {protocol['num_features']} features: the Fréchet distance is "
            "biased upwards by more than is stated, and compares with others of this name alone"
        )
    return said + [f"{row.name}: {row.remark}" for row in found.rows if row.remark]


def format_table(found: Evaluation) -> str:
    """A column a row, a line a metric; under it what they mean, and the names that the numbers are stored under."""
    lines = table_cells(found)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = [
        "  ".join([name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]).rstrip()
        for name, *rest in lines
    ]
    meanings = [f"{LINES[w][0]}: {LINES[w][1]}; {', '.join(names)}" for w, names in metrics_by_kind(found).items()]
    return "\n".join([*shown, "", *meanings, "", *(f"note: {line}" for line in footnotes(found))])


def to_json(found: Evaluation) -> dict[str, Any]:
    """Everything as plain values for JSON; an interval that is not known is null."""
    return {"protocol": found.protocol, "rows": [_plain(row) for row in found.rows]}


def log_evaluation(found: Evaluation, config: EvaluateConfig, page: str = "") -> None:
    """An MLflow run for every row but the reference; the same row, measured the same way again, keeps its run."""
    tracker = Tracker(config.tracking.uri, config.tracking.experiment or EXPERIMENT)
    whole = format_table(found)
    for row in found.rows[1:]:
        told = json_bytes([row.name, row.lineage, found.protocol])
        key = hashlib.sha256(told).hexdigest()[:32]
        tags = {"kind": "evaluation", "judged": row.kind, "git_commit": git_commit(), **row.lineage}
        tags |= {"reference_set_digest": found.protocol["reference_set_digest"], "remark": row.remark}
        run = tracker.start(
            key, name=row.name, params=found.protocol, tags={key: value for key, value in tags.items() if value}
        )
        with run.ending():
            source = {"digest": found.protocol["dataset_digest"], "url": found.protocol["dataset_uri"]}
            run.dataset(name=found.protocol["reference"], context="evaluation", **source)
            run.metrics(dict(_scalars(row.metrics)))
            spectrum = statistic_name(
                "spectrum", num=row.num, resolution=found.protocol["size"], num_frames=found.protocol["num_frames"]
            )
            run.curve(spectrum, row.spectrum)  # steps are cycles a clip
            run.text(json_bytes({"protocol": found.protocol, **_plain(row)}).decode(), "result.json")
            run.text(whole + "\n", "table.txt")
            if page:
                run.text(page, "card.html")


def _scalars(metrics: dict[str, Interval]) -> Sequence[tuple[str, float]]:
    parts = [
        (f"{name}{end}", value)
        for name, found in metrics.items()
        for end, value in zip(("", "/low", "/high"), found, strict=True)
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
            name: {key: number(value) for key, value in found._asdict().items()} for name, found in row.metrics.items()
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
    """Three digits that count, without an exponent."""
    if math.isnan(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 or value == 0 else f"{value:.3f}"
