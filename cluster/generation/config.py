"""Settings of generation and prediction."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.storage.media_formats import FORMATS
from vgan.options import check_choice, option, section
from vgan.video.config import VideoConfig


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What to draw."""

    checkpoint: str = option(
        "",
        "a run's folder, one of its checkpoints, an exported model, or a .t7 file of the published code (required)",
        "required",
    )
    out: str = option("out/samples", "url of the folder for the videos", "common")
    num_clips: int = option(16, "clips to draw", "common")
    format: list[str] = option(["mp4"], "any of mp4, gif and png (still film strips): [mp4,gif]", "common")
    panels: bool = option(True, "also the streams side by side, as the paper's figure 3")
    ema: bool = option(True, "draw from the moving average of the generator, where there is one")
    fps: float = option(25.0, "frames a second of the files")
    seed: int = option(0, "of the noise", "common")
    mixture: str = option("", "of an autoencoder, an earlier call's out= or its mixture.safetensors; empty: fit one")
    data: str = option("", "of an autoencoder, dataset whose clips' codes are fitted; empty: what it was trained on")
    components: int = option(256, "of an autoencoder, Gaussians of the mixture")
    mixture_clips: int = option(10_000, "of an autoencoder, clips whose codes are fitted at most")

    def __post_init__(self) -> None:
        for kind in self.format:
            check_choice("format", kind, FORMATS)
        if not self.format or not 0.1 <= self.fps <= 240:
            raise ValueError(f"format must name a kind and fps be in 0.1..240; got {self.format} and {self.fps}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be at least 0 and below 2^32, got {self.seed}")
        for key in ("num_clips", "components", "mixture_clips"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """What to predict."""

    checkpoint: str = option(
        "", "a run's folder, one of its checkpoints or an exported model, a future model (required)", "required"
    )
    images: list[str] = option([], "images, videos or folders of them, on any url", "common")
    data: str = option("", "dataset whose clips give the table of errors; it must not have been trained on", "common")
    out: str = option("out/predicted", "url of the folder for the videos and errors.json", "common")
    num_clips: int = option(
        1000, "clips of data= that are predicted at most; and training clips for the mean future", "common"
    )
    format: list[str] = option(["mp4"], "any of mp4, gif and png (the last frame): [mp4,gif]", "common")
    fps: float = option(25.0, "frames a second of the files")
    video: VideoConfig = section(VideoConfig, "how the clip of a video is prepared")

    def __post_init__(self) -> None:
        for kind in self.format:
            check_choice("format", kind, FORMATS)
        if not self.format or not 0.1 <= self.fps <= 240 or self.num_clips < 1:
            got = f"{self.format}, {self.fps} and {self.num_clips}"
            raise ValueError(f"format must name a kind, fps be in 0.1..240, and num at least 1; got {got}")
