"""Job that generates videos from a trained model."""

from __future__ import annotations

from cluster.generation.config import GenerateConfig
from jobs import cli

ABOUT = """Generate videos from a trained model: one file per clip, a grid of all clips, and the streams side by side.

  python -m jobs.generate checkpoint=out/runs/gan out=out/samples num_clips=16 format=mp4
  python -m jobs.generate checkpoint=models/golf/iter65000_net.t7 out=out/golf format=[gif,png]

For an autoencoder (the baseline), a mixture of Gaussians is fitted to the latent codes of its dataset's clips, sampled,
and stored with the samples; mixture= with their folder reuses it.
"""


def main(config: GenerateConfig) -> None:
    """Generate videos from a trained model."""
    from cluster.generation.generate import generate  # heavy, after the arguments are checked

    generate(config)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, GenerateConfig, ABOUT))
