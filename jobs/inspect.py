"""Job that shows the clips with the highest activations of hidden units."""

from __future__ import annotations

from cluster.evaluation.config import InspectConfig
from jobs import cli

ABOUT = """Show, for hidden units, the clips with the highest activations and the regions that cause them (the paper's
figure 6). Units of a discriminator, or of the encoder of a future model or an autoencoder; one clip per video.

  python -m jobs.inspect data=out/clips checkpoint=out/runs/gan layer=3
  python -m jobs.inspect data=out/clips checkpoint=out/runs/future network=encoder layer=3 units=[5,17]

Writes sheet.png and units.json into out=, and a picture and an animation per unit. The titles state the share of the
peak activations that depends on motion.
"""


def main(config: InspectConfig) -> None:
    """Write pictures of the clips with the highest activations of hidden units."""
    from cluster.evaluation.inspect_units import inspect_units  # heavy, after the arguments are checked

    inspect_units(config)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, InspectConfig, ABOUT))
