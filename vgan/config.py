"""Frozen settings of the science. Every field carries its meaning and unit, which `--help` prints.

Shape legend of the whole project: B batch, C channel, T time, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def option(default: Any, meaning: str) -> Any:
    """A dataclass field with its meaning (and unit) for `--help`."""
    if isinstance(default, list | dict | set):
        return field(default_factory=lambda: type(default)(default), metadata={"help": meaning})
    return field(default=default, metadata={"help": meaning})


def section(kind: type, meaning: str) -> Any:
    """A nested group of options, made fresh with its defaults."""
    return field(default_factory=kind, metadata={"help": meaning})


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError naming `value` unless it is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """The shape of every clip in a dataset (paper section 3.1)."""

    num_frames: int = option(32, "frames in a clip (T), a multiple of 16")
    size: int = option(64, "height and width of a clip, pixels; 32, 64 or 128")
    fps: float = option(25.0, "frames a second after resampling by time")
    stride: int = option(32, "frames from one clip's start to the next; num_frames cuts back to back")
    max_per_video: int = option(100, "clips taken from one video at most (the original's cap)")

    def __post_init__(self) -> None:
        if self.num_frames < 16 or self.num_frames % 16:
            raise ValueError(f"clip.num_frames must be a multiple of 16, got {self.num_frames}")
        if self.size not in (32, 64, 128):
            raise ValueError(f"clip.size must be 32, 64 or 128, got {self.size}")
        if not 0 < self.fps <= 240:
            raise ValueError(f"clip.fps must be above 0 and at most 240, got {self.fps}")
        if self.stride < 1 or self.max_per_video < 1:
            raise ValueError(f"clip.stride and clip.max_per_video must be at least 1, got {self.stride} and {self.max_per_video}")


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """How a file becomes frames with presentation times."""

    backend: str = option("auto", "auto, pyav or decord; auto decodes with pyav and falls back to decord")
    size: int = option(128, "short side frames are reduced to while decoding, pixels; never enlarged")
    min_fps: float = option(15.0, "slower sources are rejected: repeated frames would look like stillness")
    max_gap_s: float = option(0.5, "a longer hole between frames ends the shot, seconds")
    timeout_s: float = option(60.0, "a decoder that gives nothing for this long is killed, seconds")

    def __post_init__(self) -> None:
        check_choice("decode.backend", self.backend, ("auto", "pyav", "decord"))
        if self.size < 32:
            raise ValueError(f"decode.size must be at least 32 pixels, got {self.size}")


@dataclass(frozen=True, kw_only=True)
class ShotConfig:
    """Where one shot ends and the next begins."""

    max_difference: float = option(30.0, "mean absolute difference of two neighbouring 64 px frames that makes a cut, 0..255")


@dataclass(frozen=True, kw_only=True)
class StabilizeConfig:
    """Camera motion removal: SIFT, RANSAC similarity to the clip's first frame, warp, fill (paper section 3.1)."""

    preset: str = option("paper", "paper: 4-DoF similarity with a re-projection test; off: crop only")
    keep_failed: bool = option(False, "keep a clip that cannot be registered, unstabilized, as the original did for UCF101")
    size: int = option(128, "short side at which frames are registered, pixels")
    num_features: int = option(200, "SIFT keypoints kept a frame")
    ratio: float = option(0.7, "Lowe's ratio test: best match over second best")
    min_matches: int = option(8, "fewer matches between neighbouring frames reject the clip")
    ransac_px: float = option(2.0, "RANSAC inlier threshold at registration size, pixels")
    max_residual_px: float = option(1.5, "RMS re-projection error of inliers above this rejects the clip, pixels at registration size")
    min_inlier_ratio: float = option(0.3, "inliers over matches below this reject the clip")
    max_photometric: float = option(30.0, "mean absolute difference of neighbouring frames after warping above this rejects the clip, 0..255")
    max_filled: float = option(0.5, "share of a frame without pixels of its own above this rejects the clip, 0..1")

    def __post_init__(self) -> None:
        check_choice("stabilize.preset", self.preset, ("paper", "off"))


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """Everything between a video file and its clips."""

    clip: ClipSpec = section(ClipSpec, "shape of a clip")
    decode: DecodeConfig = section(DecodeConfig, "file to frames")
    shots: ShotConfig = section(ShotConfig, "frames to shots")
    stabilize: StabilizeConfig = section(StabilizeConfig, "camera motion removal")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The networks: layer tables of the paper at any width (paper section 2)."""

    kind: str = option("two_stream", "generator: two_stream (paper equation 2)")
    base: int = option(64, "channels of the widest-resolution hidden layer; 64 is the paper's")
    z_size: int = option(100, "length of the latent code z (Z)")
    num_frames: int = option(32, "frames of a clip (T); must equal the dataset's")
    size: int = option(64, "height and width of a clip, pixels; must equal the dataset's")

    def __post_init__(self) -> None:
        check_choice("model.kind", self.kind, ("two_stream",))
        if self.base < 1 or self.z_size < 1:
            raise ValueError(f"model.base and model.z_size must be at least 1, got {self.base} and {self.z_size}")
        if self.num_frames < 16 or self.num_frames % 16:
            raise ValueError(f"model.num_frames must be a multiple of 16, got {self.num_frames}")
        if self.size not in (32, 64, 128):
            raise ValueError(f"model.size must be 32, 64 or 128, got {self.size}")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Losses and optimizer (paper section 2.4)."""

    mask_weight: float = option(0.1, "lambda of the mask's sparsity prior, times the mean of the mask (see README, presets)")
    learning_rate: float = option(2e-4, "Adam's step size for both networks")
    beta1: float = option(0.5, "Adam's first moment decay (the paper's momentum term)")
    beta2: float = option(0.999, "Adam's second moment decay")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Fine-tuning of the discriminator's trunk with a fresh softmax head (paper section 3.3)."""

    iterations: int = option(200, "optimizer steps, the same for every label fraction")
    batch_size: int = option(32, "clips a step")
    learning_rate: float = option(2e-4, "Adam's step size for all layers")
    beta1: float = option(0.5, "Adam's first moment decay")
    dropout: float = option(0.5, "probability of dropping a whole channel before the head")
