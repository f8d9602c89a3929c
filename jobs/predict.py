"""Job that predicts the future of still images."""

from __future__ import annotations

from cluster.generation.config import PredictConfig
from jobs import cli

ABOUT = """Predict the future of images with a future model. Each output shows input, prediction, mask and, for a video,
the true future side by side.

  python -m jobs.predict checkpoint=out/runs/future images=photo.jpg out=out/predicted
  python -m jobs.predict checkpoint=out/runs/future images=[/photos,film.mp4] data=out/held-out out=out/predicted

For a video, the first clip that passes the filters of jobs.prepare is predicted. data= is a held-out dataset: the
errors on its clips are compared with two baselines, copying the first frame and the mean future.
"""


def main(config: PredictConfig) -> None:
    """Predict the future of still images."""
    from cluster.generation.predict import predict  # heavy, after the arguments are checked

    predict(config)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, PredictConfig, ABOUT))
