"""Predict the future of still images."""

from __future__ import annotations

from cluster.generation.config import PredictConfig
from jobs import cli

ABOUT = """Predict the future of images: input, prediction, mask and, of a video, what happened, side by side.

  python -m jobs.predict checkpoint=out/runs/future images=photo.jpg out=out/predicted
  python -m jobs.predict checkpoint=out/runs/future images=[/photos,film.mp4] data=out/held-out out=out/predicted

Of a video the first clip that training would take is predicted, prepared in the same way. data= is a dataset that was
not trained on: its clips give the table of errors, against the guess that nothing moves and that of the mean future.
"""


def main(config: PredictConfig) -> None:
    """Predict the future of still images."""
    from cluster.generation.predict import predict  # heavy, after the arguments are checked

    predict(config)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, PredictConfig, ABOUT))
