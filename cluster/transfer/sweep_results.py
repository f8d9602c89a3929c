"""Results of a sweep: rows, tables, figures, and their log in MLflow (a parent run with one child run per result)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cluster.observability.mlflow_tracker import Run, Tracker
from cluster.transfer.sweep_run import SweepRun
from vgan.errors import InputError
from vgan.transfer.accuracy_curves import BASELINE, EVERY, Point, Result, accuracies, paired_differences, relative_gains
from vgan.transfer.label_subsets import ids_digest
from vgan.transfer.scores import Scores
from vgan.viz.figures import all_labels_figure, figure_png, label_fraction_figure
from vgan.viz.plotly_figures import all_labels_page, label_fraction_page

COLUMNS = ("split", "init", "fraction", "seed", "accuracy", "chance", "protocol", "remark")
MEAN = "mean-of-splits"
PREDICTIONS = "predictions.csv"  # artifact of a child run: true and predicted class of each test video


def to_row(child: SweepRun, outcome: dict[str, Any], remark: str) -> dict[str, Any]:
    """Convert the outcome of a run to a row of the sweep's results.

    Args:
        child: initialization, label fraction, seed and split.
        outcome: result of `cluster.transfer.sweep_run.finetune_run`.
        remark: note for figures and tables; "" for none.
    """
    correct = [int(a == b) for a, b in zip(outcome["labels"], outcome["predicted"], strict=True)]
    scores = {key: outcome[key] for key in ("accuracy", "protocol", "chance")}
    return asdict(child) | scores | {"remark": remark, "correct": correct}


def to_results(rows: Sequence[dict[str, Any]]) -> list[Result]:
    """Convert rows to the input of `vgan.transfer.accuracy_curves`."""
    keys = ("init", "fraction", "seed", "split")
    return [Result(**{key: row[key] for key in keys}, correct=np.array(row["correct"], bool)) for row in rows]


def _by_init(points: Iterable[Point]) -> dict[str, list[Point]]:
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.init, []).append(point)
    return groups


def format_table(rows: list[dict[str, Any]]) -> str:
    """Format a table of mean accuracy with its 95 % interval, per protocol, initialization and label fraction.

    Further lines state the difference from random initialization.
    """
    fractions = sorted({row["fraction"] for row in rows})
    heads = "".join(f"{fraction:>20g}" for fraction in fractions)
    lines = ["accuracy, % (95 % interval over seeds and test videos), per label fraction", f"{'init':<40}{heads}"]
    for protocol, protocol_rows in group_by_protocol(rows).items():
        lines.append(f"{protocol}, chance {100 * protocol_rows[0]['chance']:.3g}")
        results = to_results(protocol_rows)
        for init, points in _by_init(accuracies(results)).items():
            cells = {p.fraction: f"{100 * p.mean:.1f} ({100 * p.low:.1f}-{100 * p.high:.1f})" for p in points}
            lines.append(f"  {init:<38}" + "".join(f"{cells.get(f, ''):>20}" for f in fractions))
        for init, points in _by_init(paired_differences(results)).items():
            cells = {p.fraction: f"{100 * p.mean:+.1f} ({100 * p.low:+.1f} {100 * p.high:+.1f})" for p in points}
            line = f"  {f'{init}, over {BASELINE}':<38}" + "".join(f"{cells.get(f, ''):>20}" for f in fractions)
            lines.append(line + (f"   all fractions: {cells[EVERY]}" if EVERY in cells else ""))
    lines += sorted({f"note: {row['remark']}" for row in rows if row["remark"]})
    return "\n".join(lines)


# ---- logging to MLflow -------------------------------------------------------------------------------------------


def log_run(
    tracker: Tracker, parent: Run, child: SweepRun, outcome: dict[str, Any], key: str, lineage: dict[str, str]
) -> None:
    """Log a child run with its subset, loss curve, predictions and accuracy, unless it is already logged.

    Args:
        tracker: experiment.
        parent: run of the sweep.
        child: initialization, label fraction, seed and split.
        outcome: result of `cluster.transfer.sweep_run.finetune_run`.
        key: key of the sweep.
        lineage: tags with the origin of data, code and weights.
    """
    if tracker.is_finished(f"{key}-{child.name}"):
        return
    tags = {name: str(value) for name, value in asdict(child).items()}
    test_tags = {"protocol": outcome["protocol"], "chance": str(outcome["chance"])}
    run = tracker.start(
        f"{key}-{child.name}",
        name=child.name,
        parent=parent.id,
        params={"label_fraction": child.fraction, **tags},
        tags={"kind": "child", **tags, **test_tags, **lineage},
    )
    name = f"{outcome['protocol']}-f{child.fraction:g}-seed{child.seed}"
    run.dataset(name=name, digest=ids_digest(outcome["subset"]), url=parent.id, context="finetune")
    run.text("\n".join(outcome["subset"]) + "\n", "subset.txt")
    names = outcome["classes"]
    predictions = zip(outcome["tested"], outcome["labels"], outcome["predicted"], strict=True)
    run.text(_csv(("video", "class", "predicted"), [(v, names[a], names[b]) for v, a, b in predictions]), PREDICTIONS)
    run.text(_csv(("class", *names), _confusion(outcome)), "confusion.csv")
    if outcome["losses"]:
        run.log_series("loss/finetune", outcome["losses"])
    counts = {"data/label_fraction": child.fraction, "data/num_labelled_clips": outcome["num_train"]}
    by_class = {f"class_accuracy/{name}": value for name, value in _class_accuracy(outcome).items()}
    run.metrics(outcome["metrics"] | counts | by_class)
    run.finish()


def log_results(parent: Run, rows: list[dict[str, Any]]) -> None:
    """Log the table and the figures of the results so far on the sweep's run, replacing earlier ones."""
    log_table(parent, rows)
    log_figures(parent, rows)


def log_table(parent: Run, rows: list[dict[str, Any]]) -> None:
    """Log the table of the results so far on the sweep's run, replacing an earlier one."""
    parent.text(_table(rows), "label_fractions.csv")


def log_figures(parent: Run, rows: list[dict[str, Any]]) -> None:
    """Draw the figures of the results so far and log them on the sweep's run, replacing earlier ones."""
    for name, (figure, _) in _figures(rows).items():
        parent.figure(figure(), f"figures/{name}.png")


def log_pages_and_curves(parent: Run, rows: list[dict[str, Any]]) -> None:
    """Log the interactive pages, and the mean accuracy of each initialization as a metric, at the end of a sweep.

    The step of the metric is the percentage of labels, so that MLflow's charts show accuracy against labels.
    """
    for name, (_, page) in _figures(rows).items():
        parent.text(page(), f"figures/{name}.html")
    for point in accuracies(to_results(rows)):
        parent.metrics({f"curve/accuracy_{point.init}": point.mean}, step=round(100 * point.fraction))


def _figures(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[Callable[[], Figure], Callable[[], str]]]:
    """Return two functions per figure name: one draws it as an image, the other renders it as an HTML page."""
    figures: dict[str, tuple[Callable[[], Figure], Callable[[], str]]] = {}
    for protocol, protocol_rows in group_by_protocol(rows).items():
        captions, results = _captions(protocol, protocol_rows), to_results(protocol_rows)
        points = accuracies(results)
        curves = (points, relative_gains(results))
        figures[f"figure_4bc_{protocol}"] = (
            partial(label_fraction_figure, *curves, **captions),
            partial(label_fraction_page, *curves, **captions),
        )
        if any(p.fraction == 1.0 for p in points):
            figures[f"figure_4a_{protocol}"] = (
                partial(all_labels_figure, points, **captions),
                partial(all_labels_page, points, **captions),
            )
    return figures


def write_figures(rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Write the table and every figure, as PNG and HTML, to a local folder, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "label_fractions.csv").write_text(_table(rows))
    written = [folder / "label_fractions.csv"]
    for name, (figure, page) in _figures(rows).items():
        for path, data in ((f"{name}.png", figure_png(figure())), (f"{name}.html", page().encode())):
            (folder / path).write_bytes(data)
            written.append(folder / path)
    return written


def group_by_protocol(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group rows by test protocol; with several splits, add a group for their mean (paper figure 4a).

    The mean contains the combinations of initialization, fraction and seed that have run on all of the splits.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    across_splits: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["protocol"], []).append(row)
        across_splits.setdefault(row["protocol"].replace(f"split{row['split']}", MEAN, 1), []).append(row)
    for protocol, members in across_splits.items():
        splits = sorted({row["split"] for row in members})
        splits_of: dict[tuple[Any, ...], set[int]] = {}
        for row in members:
            splits_of.setdefault((row["init"], row["fraction"], row["seed"]), set()).add(row["split"])
        complete = [row for row in members if len(splits_of[row["init"], row["fraction"], row["seed"]]) == len(splits)]
        if len(splits) > 1 and complete:
            groups[protocol.replace(MEAN, f"{MEAN}-{'-'.join(map(str, splits))}", 1)] = complete
    return groups


def _captions(protocol: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the options of every figure of a protocol; published accuracies apply to complete UCF101 only."""
    published = protocol.startswith(("ucf101-split", "ucf101-mean")) and "heldout" not in protocol
    remark = "; ".join(sorted({row["remark"] for row in rows} - {""}))
    return {"protocol": protocol, "chance": rows[0]["chance"], "remark": remark, "published": published}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    return _csv(COLUMNS, [[row[column] for column in COLUMNS] for row in rows])


def _csv(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([head, *lines])
    return buffer.getvalue()


def _confusion(outcome: dict[str, Any]) -> list[list[Any]]:
    """Return the rows of the confusion matrix: name of the true class, then counts per predicted class."""
    counts = _scores(outcome).confusion
    return [[name, *row] for name, row in zip(outcome["classes"], counts.tolist(), strict=True)]


def _class_accuracy(outcome: dict[str, Any]) -> dict[str, float]:
    """Return the accuracy of every class with test videos, by class name."""
    values = dict(zip(outcome["classes"], _scores(outcome).class_accuracy.tolist(), strict=True))
    return {name: value for name, value in values.items() if np.isfinite(value)}


def _scores(outcome: dict[str, Any]) -> Scores:
    labels, predicted = (np.array(outcome[key]) for key in ("labels", "predicted"))
    num = len(outcome["classes"])
    return Scores(protocol=outcome["protocol"], labels=labels, predicted=predicted, num_classes=num)


# ---- reading from MLflow -----------------------------------------------------------------------------------------


def load_sweep(tracker: Tracker, names: Sequence[str]) -> tuple[Run, list[dict[str, Any]]]:
    """Read the run and the rows of a sweep from MLflow.

    Args:
        tracker: experiment.
        names: names of sweeps. With several, initializations are prefixed by the name of their sweep.

    Returns:
        The run of the first sweep, and the rows of all.

    Raises:
        InputError: no sweep has the name, or it has no finished child run.
    """
    parents, rows = [], list[dict[str, Any]]()
    for name in names:
        parent = tracker.latest_run(kind="sweep", name=name)
        if parent is None:
            raise InputError(
                f"no sweep {name!r} in MLflow's experiment {tracker.experiment!r}: check sweep= and tracking.*"
            )
        sweep_rows = [_row_from(tracker, run_id, tags) for run_id, tags in tracker.children(parent.id)]
        if not sweep_rows:
            raise InputError(f"the sweep {name!r} has no finished run yet")
        if len(names) > 1:
            sweep_rows = [row | {"init": f"{name}: {row['init']}"} for row in sweep_rows]
        parents.append(parent)
        rows += sweep_rows
    return parents[0], sorted(rows, key=lambda r: (r["split"], r["init"], r["fraction"], r["seed"]))


def _row_from(tracker: Tracker, run_id: str, tags: dict[str, str]) -> dict[str, Any]:
    """Rebuild a row from the tags and the predictions of a child run; the inverse of `log_run`."""
    lines = list(csv.DictReader(io.StringIO(tracker.read_text(run_id, PREDICTIONS))))
    correct = [int(line["class"] == line["predicted"]) for line in lines]
    return {
        "split": int(tags["split"]),
        "init": tags["init"],
        "fraction": float(tags["fraction"]),
        "seed": int(tags["seed"]),
        "accuracy": sum(correct) / len(correct),
        "chance": float(tags["chance"]),
        "protocol": tags["protocol"],
        "remark": tags.get("remark", ""),
        "correct": correct,
    }
