"""Draw videos from a trained generator."""

from __future__ import annotations

from cluster.generation.config import GenerateConfig
from jobs import cli

ABOUT = """Sample a trained generator: one file a clip, a grid of all, and its streams side by side.

  python -m jobs.generate checkpoint=out/runs/gan out=out/samples num_clips=16 format=mp4
  python -m jobs.generate checkpoint=models/golf/iter65000_net.t7 out=out/golf format=[gif,png]

An autoencoder (the baseline) draws from a mixture that is fitted to the codes of its dataset's clips, and kept beside
the samples: give their folder as mixture= to draw from it again.
"""


def main(config: GenerateConfig) -> None:
    """Draw videos from a trained generator."""
    from cluster.generation.generate import generate  # heavy, after the arguments are checked

    generate(config)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, GenerateConfig, ABOUT))
