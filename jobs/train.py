"""Job that trains a model on a prepared dataset."""

from __future__ import annotations

from dataclasses import replace

from cluster.training.config import TrainConfig
from jobs import cli
from vgan.options import require_options

ABOUT = """Train a model (model.architecture) on Ray Train workers with DeepSpeed: the two-stream or one-stream video
GAN, the future model, or the autoencoder of the baseline. The same name= resumes its run; Ctrl-C and SIGTERM save a
checkpoint first.

  python -m jobs.train data=out/clips out=out/runs name=gan workers=2 preset=stable model.base_width=16 batch_size=16
  python -m jobs.train config=jobs/configs/future.yaml data=out/clips out=out/runs
  python -m jobs.train config=jobs/configs/paper.yaml data=s3://b/clips out=s3://b/runs workers=1-8 use_gpu=true
"""


def main(config: TrainConfig) -> None:
    """Train, and print the URL of the last checkpoint."""
    from cluster.runtime.provenance import save_settings  # heavy, after the arguments are checked
    from cluster.storage.urls import absolute_url, join_url
    from cluster.training.trainer import fit

    require_options(config, "data", "out")
    config = replace(config, data=absolute_url(config.data), out=absolute_url(config.out))
    checkpoint = fit(config)
    save_settings(config, join_url(config.out, config.name, "settings.yaml"))
    print(f"step {checkpoint.step}, {checkpoint.clips_seen} clips seen -> {checkpoint.url}")


if __name__ == "__main__":
    raise SystemExit(cli.run(main, TrainConfig, ABOUT))
