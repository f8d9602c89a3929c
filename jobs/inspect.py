"""Show the clips that hidden units respond to most."""

from __future__ import annotations

from cluster.evaluation.config import InspectConfig
from jobs import cli

ABOUT = """Show hidden units of a discriminator, or of the encoder of a future model or an autoencoder, as the paper's
figure 6: the clips of a dataset that each fires most for, one a video, and below them what in them it fires at.

  python -m jobs.inspect data=out/clips checkpoint=out/runs/gan layer=3
  python -m jobs.inspect data=out/clips checkpoint=out/runs/future network=encoder layer=3 units=[5,17]

A sheet and its table come into out=, and a picture and an animation a unit: those that react to motion say so.
"""


def main(config: InspectConfig) -> None:
    """Show the clips that hidden units respond to most."""
    from cluster.evaluation.inspect_units import inspect_units  # heavy, after the arguments are checked

    inspect_units(config)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, InspectConfig, ABOUT))
