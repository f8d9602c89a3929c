"""Train the video GAN on a prepared dataset."""

from __future__ import annotations

from dataclasses import replace

from cluster import storage
from cluster.training import TrainConfig, fit
from jobs import command

ABOUT = """Train the two-stream video GAN on Ray Train workers running DeepSpeed. The same name continues its run.

  python -m jobs.train data=out/clips out=out/runs name=gan workers=2 model.base=16 batch_size=16 steps=500
"""


def main(config: TrainConfig) -> None:
    """Train, and print where the last checkpoint is."""
    command.require(config, "data", "out")
    config = replace(config, data=storage.absolute(config.data), out=storage.absolute(config.out))
    checkpoint = fit(config)
    command.save(config, storage.join(config.out, config.name, "settings.yaml"))
    print(f"step {checkpoint.step}, {checkpoint.clips_seen} clips seen -> {checkpoint.url}")


if __name__ == "__main__":
    raise SystemExit(command.run(main, TrainConfig, ABOUT))
