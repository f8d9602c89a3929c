"""What a sweep leaves in MLflow, a child run each and figures on the parent; and a sweep found again from there."""

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
PREDICTIONS = "predictions.csv"  # of a child: each test video with its class and what it was taken for


def to_row(child: SweepRun, outcome: dict[str, Any], remark: str) -> dict[str, Any]:
    """One line of a sweep's results."""
    correct = [int(a == b) for a, b in zip(outcome["labels"], outcome["predicted"], strict=True)]
    told = {key: outcome[key] for key in ("accuracy", "protocol", "chance")}
    return asdict(child) | told | {"remark": remark, "correct": correct}


def to_results(rows: Sequence[dict[str, Any]]) -> list[Result]:
    """Rows as `vgan.transfer.accuracy_curves` takes them."""
    keys = ("init", "fraction", "seed", "split")
    return [Result(**{key: row[key] for key in keys}, correct=np.array(row["correct"], bool)) for row in rows]


def _by_init(points: Iterable[Point]) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.init, []).append(point)
    return found


def format_table(rows: list[dict[str, Any]]) -> str:
    """Mean accuracy and its 95 % interval, by protocol, init and fraction."""
    fractions = sorted({row["fraction"] for row in rows})
    heads = "".join(f"{fraction:>20g}" for fraction in fractions)
    lines = ["accuracy, % (95 % interval over seeds and test videos), by share of labels", f"{'init':<40}{heads}"]
    for protocol, found in group_by_protocol(rows).items():
        lines.append(f"{protocol}, chance {100 * found[0]['chance']:.3g}")
        results = to_results(found)
        for init, own in _by_init(accuracies(results)).items():
            cells = {p.fraction: f"{100 * p.mean:.1f} ({100 * p.low:.1f}-{100 * p.high:.1f})" for p in own}
            lines.append(f"  {init:<38}" + "".join(f"{cells.get(f, ''):>20}" for f in fractions))
        for init, own in _by_init(paired_differences(results)).items():
            cells = {p.fraction: f"{100 * p.mean:+.1f} ({100 * p.low:+.1f} {100 * p.high:+.1f})" for p in own}
            line = f"  {f'{init}, over {BASELINE}':<38}" + "".join(f"{cells.get(f, ''):>20}" for f in fractions)
            lines.append(line + (f"   all fractions: {cells[EVERY]}" if EVERY in cells else ""))
    lines += sorted({f"note: {row['remark']}" for row in rows if row["remark"]})
    return "\n".join(lines)


# ---- to MLflow ---------------------------------------------------------------------------------------------------


def log_run(
    tracker: Tracker, parent: Run, child: SweepRun, outcome: dict[str, Any], key: str, lineage: dict[str, str]
) -> None:
    """One child run with its subset, loss curve, predictions and accuracy; nothing if an earlier run logged it."""
    if tracker.finished(f"{key}-{child.name}"):
        return
    tags = {name: str(value) for name, value in asdict(child).items()}
    told = {"protocol": outcome["protocol"], "chance": str(outcome["chance"])}
    run = tracker.start(
        f"{key}-{child.name}",
        name=child.name,
        parent=parent.id,
        params={"label_fraction": child.fraction, **tags},
        tags={"kind": "child", **tags, **told, **lineage},
    )
    name = f"{outcome['protocol']}-f{child.fraction:g}-seed{child.seed}"
    run.dataset(name=name, digest=ids_digest(outcome["subset"]), url=parent.id, context="finetune")
    run.text("\n".join(outcome["subset"]) + "\n", "subset.txt")
    names = outcome["classes"]
    lines = zip(outcome["tested"], outcome["labels"], outcome["predicted"], strict=True)
    run.text(_csv(("video", "class", "predicted"), [(v, names[a], names[b]) for v, a, b in lines]), PREDICTIONS)
    run.text(_csv(("class", *names), _confusion(outcome)), "confusion.csv")
    if outcome["losses"]:
        run.curve("loss/finetune", outcome["losses"])
    counts = {"data/label_fraction": child.fraction, "data/num_labelled_clips": outcome["num_train"]}
    by_class = {f"class_accuracy/{name}": value for name, value in _class_accuracy(outcome).items()}
    run.metrics(outcome["metrics"] | counts | by_class)
    run.finish()


def log_results(parent: Run, rows: list[dict[str, Any]]) -> None:
    """Redraw the parent's figures and table from the results so far."""
    parent.text(_table(rows), "label_fractions.csv")
    for name, (figure, _) in _figures(rows).items():
        parent.figure(figure(), f"figures/{name}.png")


def log_final_figures(parent: Run, rows: list[dict[str, Any]]) -> None:
    """What is drawn once: pages to look around in, and mean accuracy by init as metrics whose step is the percentage
    of labels, so that MLflow draws accuracy against labels as it is."""
    for name, (_, page) in _figures(rows).items():
        parent.text(page(), f"figures/{name}.html")
    for point in accuracies(to_results(rows)):
        parent.metrics({f"curve/accuracy_{point.init}": point.mean}, step=round(100 * point.fraction))


def _figures(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[Callable[[], Figure], Callable[[], str]]]:
    """Every figure by its name: how to draw it as a picture, and as a page."""
    found: dict[str, tuple[Callable[[], Figure], Callable[[], str]]] = {}
    for protocol, own in group_by_protocol(rows).items():
        shown, results = _shown(protocol, own), to_results(own)
        points = accuracies(results)
        curves = (points, relative_gains(results))
        found[f"figure_4bc_{protocol}"] = (
            partial(label_fraction_figure, *curves, **shown),
            partial(label_fraction_page, *curves, **shown),
        )
        if any(p.fraction == 1.0 for p in points):
            found[f"figure_4a_{protocol}"] = (
                partial(all_labels_figure, points, **shown),
                partial(all_labels_page, points, **shown),
            )
    return found


def write_figures(rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    """The table and every figure, as pictures and as pages, into a local folder; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "label_fractions.csv").write_text(_table(rows))
    written = [folder / "label_fractions.csv"]
    for name, (figure, page) in _figures(rows).items():
        for path, data in ((f"{name}.png", figure_png(figure())), (f"{name}.html", page().encode())):
            (folder / path).write_bytes(data)
            written.append(folder / path)
    return written


def group_by_protocol(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of each test protocol; of several splits also their mean (figure 4a), of what has run on all of them."""
    found: dict[str, list[dict[str, Any]]] = {}
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["protocol"], []).append(row)
        kinds.setdefault(row["protocol"].replace(f"split{row['split']}", MEAN, 1), []).append(row)
    for kind, own in kinds.items():
        splits = sorted({row["split"] for row in own})
        runs: dict[tuple[Any, ...], set[int]] = {}
        for row in own:
            runs.setdefault((row["init"], row["fraction"], row["seed"]), set()).add(row["split"])
        everywhere = [r for r in own if len(runs[r["init"], r["fraction"], r["seed"]]) == len(splits)]
        if len(splits) > 1 and everywhere:
            found[kind.replace(MEAN, f"{MEAN}-{'-'.join(map(str, splits))}", 1)] = everywhere
    return found


def _shown(protocol: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What every figure says beside its points. Published figures are of the whole of UCF101."""
    whole = protocol.startswith(("ucf101-split", "ucf101-mean")) and "heldout" not in protocol
    remark = "; ".join(sorted({row["remark"] for row in rows} - {""}))
    return {"protocol": protocol, "chance": rows[0]["chance"], "remark": remark, "published": whole}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    return _csv(COLUMNS, [[row[column] for column in COLUMNS] for row in rows])


def _csv(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([head, *lines])
    return buffer.getvalue()


def _confusion(outcome: dict[str, Any]) -> list[list[Any]]:
    """A line a class: its name, and as what its videos were taken."""
    counts = _scores(outcome).confusion
    return [[name, *row] for name, row in zip(outcome["classes"], counts.tolist(), strict=True)]


def _class_accuracy(outcome: dict[str, Any]) -> dict[str, float]:
    values = dict(zip(outcome["classes"], _scores(outcome).class_accuracy.tolist(), strict=True))
    return {name: value for name, value in values.items() if np.isfinite(value)}


def _scores(outcome: dict[str, Any]) -> Scores:
    labels, predicted = (np.array(outcome[key]) for key in ("labels", "predicted"))
    num = len(outcome["classes"])
    return Scores(protocol=outcome["protocol"], labels=labels, predicted=predicted, num_classes=num)


# ---- from MLflow -------------------------------------------------------------------------------------------------


def load_sweep(tracker: Tracker, names: Sequence[str]) -> tuple[Run, list[dict[str, Any]]]:
    """A sweep's parent run and its results, from MLflow alone; of several sweeps, every init under its sweep's name.

    Raises:
        InputError: there is no sweep of a name, or it has no finished child.
    """
    parents, rows = [], list[dict[str, Any]]()
    for name in names:
        parent = tracker.newest(kind="sweep", name=name)
        if parent is None:
            raise InputError(
                f"no sweep {name!r} in MLflow's experiment {tracker.experiment!r}: see sweep= and tracking.*"
            )
        found = [_row_from(tracker, run_id, tags) for run_id, tags in tracker.children(parent.id)]
        if not found:
            raise InputError(f"the sweep {name!r} has no finished run yet")
        if len(names) > 1:
            found = [row | {"init": f"{name}: {row['init']}"} for row in found]
        parents.append(parent)
        rows += found
    return parents[0], sorted(rows, key=lambda r: (r["split"], r["init"], r["fraction"], r["seed"]))


def _row_from(tracker: Tracker, run_id: str, tags: dict[str, str]) -> dict[str, Any]:
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
