"""Settings of generation and prediction."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.storage.media_formats import FORMATS
from vgan.options import check_choice, option, section
from vgan.video.config import VideoConfig


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Settings of clip generation: model, number and files of clips."""

    checkpoint: str = option(
        "", "URL of a run, a checkpoint, an exported model, or a .t7 file of the published code", "required"
    )
    out: str = option("out/samples", "URL of the folder for the videos", "common")
    num_clips: int = option(16, "number of clips to generate", "common")
    format: list[str] = option(["mp4"], "file formats: any of mp4, gif and png (film strips)", "common")
    panels: bool = option(True, "also write the streams of some clips side by side, as in the paper's figure 3")
    ema: bool = option(True, "use the moving average of the generator's weights, if available")
    fps: float = option(25.0, "frames per second of the files")
    seed: int = option(0, "seed of the noise", "common")
    mixture: str = option(
        "", "autoencoder: out= of an earlier call or a mixture.safetensors; empty: the model's, else a fitted one"
    )
    data: str = option("", "autoencoder: dataset whose codes the mixture is fitted to; empty: its training set")
    components: int = option(256, "autoencoder: number of Gaussians in the mixture")
    mixture_clips: int = option(10_000, "autoencoder: maximum number of clips that the mixture is fitted to")

    def __post_init__(self) -> None:
        for format_ in self.format:
            check_choice("format", format_, FORMATS)
        if not self.format or not 0.1 <= self.fps <= 240:
            raise ValueError(f"format must not be empty and fps be in 0.1..240; got {self.format} and {self.fps}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be at least 0 and below 2^32, got {self.seed}")
        for key in ("num_clips", "components", "mixture_clips"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Settings of future prediction: model, images or dataset, and files."""

    checkpoint: str = option("", "URL of a run, a checkpoint or an exported model, of architecture future", "required")
    images: list[str] = option([], "URLs of images, videos or folders of these", "common")
    data: str = option("", "held-out dataset to measure prediction errors on; empty: none", "common")
    out: str = option("out/predicted", "URL of the folder for the videos and errors.json", "common")
    num_clips: int = option(
        1000, "maximum number of clips of data= to predict, and of training clips for the mean future", "common"
    )
    format: list[str] = option(["mp4"], "file formats: any of mp4, gif and png (last frame)", "common")
    fps: float = option(25.0, "frames per second of the files")
    video: VideoConfig = section(VideoConfig, "preparation of clips from videos")

    def __post_init__(self) -> None:
        for format_ in self.format:
            check_choice("format", format_, FORMATS)
        if not self.format or not 0.1 <= self.fps <= 240 or self.num_clips < 1:
            got = f"{self.format}, {self.fps} and {self.num_clips}"
            raise ValueError(f"format must not be empty, fps be in 0.1..240, num_clips be at least 1; got {got}")
