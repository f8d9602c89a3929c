"""What a sweep leaves in MLflow: a child run each, and on the parent the figure, the table and the native curves."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cluster.tracking import Run, Tracker
from vgan.transfer.fractions import ids_digest
from vgan.viz.figures import AccuracyRow, label_fraction_figure

COLUMNS = ("split", "init", "fraction", "seed", "accuracy", "chance", "protocol")


@dataclass(frozen=True, order=True)
class Child:
    """One fine-tuning."""

    split: int
    init: str
    fraction: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.init}-f{self.fraction:g}-seed{self.seed}-split{self.split}"


def log_child(
    tracker: Tracker, parent: Run, child: Child, outcome: dict[str, Any], key: str, lineage: dict[str, str]
) -> None:
    """One child run with its subset, loss curve and accuracy; nothing if an earlier run of the sweep logged it."""
    if tracker.finished(f"{key}-{child.name}"):
        return
    tags = {name: str(value) for name, value in asdict(child).items()}
    run = tracker.start(
        f"{key}-{child.name}",
        name=child.name,
        parent=parent.id,
        params={"label_fraction": child.fraction, **tags},
        tags={"kind": "child", **tags, **lineage},
    )
    name = f"{outcome['protocol']}-f{child.fraction:g}-seed{child.seed}"
    run.dataset(name=name, digest=ids_digest(outcome["subset"]), url=parent.id, context="finetune")
    run.text("\n".join(outcome["subset"]) + "\n", "subset.txt")
    run.curve("loss/finetune", outcome["losses"])
    counts = {"data/label_fraction": child.fraction, "data/num_labelled_clips": outcome["num_train"]}
    run.metrics(outcome["metrics"] | counts)
    run.finish()


def log_results(parent: Run, rows: list[dict[str, Any]]) -> None:
    """Redraw the parent's figures (one a test protocol) and table from the results so far."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    parent.text(buffer.getvalue(), "label_fractions.csv")
    for protocol in {row["protocol"] for row in rows}:
        points = [
            AccuracyRow(init=r["init"], fraction=r["fraction"], seed=r["seed"], accuracy=r["accuracy"])
            for r in rows
            if r["protocol"] == protocol
        ]
        chance = next(row["chance"] for row in rows if row["protocol"] == protocol)
        figure = label_fraction_figure(points, protocol=protocol, chance=chance)
        parent.figure(figure, f"figures/label_fractions_{protocol}.png")


def log_curves(parent: Run, rows: list[dict[str, Any]]) -> None:
    """Mean accuracy by init as metrics whose step is the percentage of labels: MLflow draws them as they are."""
    for init, fraction in sorted({(row["init"], row["fraction"]) for row in rows}):
        values = [row["accuracy"] for row in rows if (row["init"], row["fraction"]) == (init, fraction)]
        parent.metrics({f"curve/accuracy_{init}": float(np.mean(values))}, step=round(100 * fraction))
