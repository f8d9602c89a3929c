"""Fine-tune on labelled actions over label fractions, and compare initializations."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

from cluster import storage
from cluster.sweep import SweepConfig, sweep
from jobs import command

ABOUT = """Fine-tune the discriminator's trunk for each (init, label fraction, seed, split): an MLflow parent run, one
child run each. Run again after an interruption: finished children are not run twice.

  python -m jobs.finetune ucf101=/data/ucf101 checkpoint=out/runs/gan out=out/finetune
  python -m jobs.finetune ucf101=/data/ucf101 inits=random fractions=[0.125,1] seeds=[0,1,2] model.base=16
"""


def main(config: SweepConfig) -> None:
    """Run the sweep and print its table."""
    command.require(config, "ucf101", "out")
    config = replace(
        config,
        ucf101=storage.absolute(config.ucf101),
        out=storage.absolute(config.out),
        checkpoint=config.checkpoint and storage.absolute(config.checkpoint),
    )
    rows = sweep(config)
    command.save(config, storage.join(config.out, config.name, "settings.yaml"))
    storage.write_json(storage.join(config.out, config.name, "results.json"), rows)
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Mean accuracy and range over seeds, by protocol, init and fraction."""
    cells: dict[tuple[str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[row["protocol"], row["init"]][row["fraction"]].append(100 * row["accuracy"])
    fractions = sorted({row["fraction"] for row in rows})
    heads = "".join(f"{fraction:>20g}" for fraction in fractions)
    lines = ["accuracy, % (lowest-highest seed), by share of labels", f"{'protocol':<40}{'init':<10}{heads}"]
    for (protocol, init), by_fraction in sorted(cells.items()):
        shown = [by_fraction.get(f, []) for f in fractions]
        text = "".join(f"{f'{sum(a) / len(a):.1f} ({min(a):.1f}-{max(a):.1f})' if a else '':>20}" for a in shown)
        lines.append(f"{protocol:<40}{init:<10}{text}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(command.run(main, SweepConfig, ABOUT))
