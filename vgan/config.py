"""Frozen settings of the science. Every field carries its meaning and unit, which `--help` prints.

Shape legend of the whole project: B batch, C channel, T time, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


def option(default: Any, meaning: str) -> Any:
    """A dataclass field with its meaning (and unit) for `--help`."""
    if isinstance(default, list | dict | set):
        return field(default_factory=lambda: type(default)(default), metadata={"help": meaning})
    return field(default=default, metadata={"help": meaning})


def section(kind: Callable[[], Any], meaning: str) -> Any:
    """A nested group of options: its dataclass, or a function that makes one with other defaults."""
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
            got = f"got {self.stride} and {self.max_per_video}"
            raise ValueError(f"clip.stride and clip.max_per_video must be at least 1, {got}")


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """How a file becomes frames with presentation times."""

    backend: str = option("auto", "auto, pyav or decord; auto decodes with pyav and falls back to decord")
    size: int = option(128, "short side frames are reduced to while decoding, pixels; never enlarged")
    min_fps: float = option(15.0, "slower sources are rejected: repeated frames would look like stillness")
    # 0.2 s is two lost frames in a row at the slowest rate accepted (3 / 15 s).
    max_gap_s: float = option(0.2, "a longer hole between frames ends the shot, seconds")
    timeout_s: float = option(60.0, "a decoder that gives nothing for this long is killed, seconds")
    # An 8K picture is 50 MB and H.264 keeps at most 16 of them: 4 GB leaves room and still stops a runaway.
    memory_gb: float = option(4.0, "private memory of the decoding process at most, 2^30 bytes")

    def __post_init__(self) -> None:
        check_choice("decode.backend", self.backend, ("auto", "pyav", "decord"))
        if self.size < 32:
            raise ValueError(f"decode.size must be at least 32 pixels, got {self.size}")
        for name in ("min_fps", "max_gap_s", "timeout_s", "memory_gb"):
            if getattr(self, name) <= 0:
                raise ValueError(f"decode.{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class ShotConfig:
    """Where one shot ends and the next begins."""

    # A false cut costs part of a clip, a missed one puts two scenes into one: hence the low side. At 20 and 2, all five
    # cuts of 23 to 41 in film that fills half of the picture are found, at 25 three of them.
    min_difference: float = option(20.0, "mean difference of two neighbouring 64 px frames that can be a cut, 0..255")
    # The weakest true cut seen amid fast motion stood out 2.5 times.
    ratio: float = option(2.0, "a cut also differs this many times more than the frames before it did")
    history: int = option(6, "differences before it that a cut must stand out from, frames; the largest is forgiven")

    def __post_init__(self) -> None:
        if self.history < 2:
            raise ValueError(f"shots.history must be at least 2, got {self.history}")


@dataclass(frozen=True, kw_only=True)
class StabilizeConfig:
    """Camera motion removal: SIFT, RANSAC similarity to the clip's first frame, warp, fill (paper section 3.1)."""

    preset: str = option("paper", "paper: 4-DoF similarity with a re-projection test; off: crop only")
    keep_failed: bool = option(False, "keep clips that cannot be registered as they are (the original's UCF101)")
    size: int = option(128, "short side at which frames are registered, pixels")
    num_features: int = option(200, "SIFT keypoints kept a frame")
    ratio: float = option(0.7, "Lowe's ratio test: best match over second best")
    min_matches: int = option(8, "fewer matches between neighbouring frames reject the clip")
    ransac_px: float = option(2.0, "RANSAC inlier threshold at registration size, pixels")
    max_residual_px: float = option(1.5, "RMS inlier error above this rejects the clip, pixels at registration size")
    min_inlier_ratio: float = option(0.3, "inliers over matches below this reject the clip")
    # A fast zoom doubles the picture in half a second: 1.06 a frame. Models fitted across cuts shrink it to nothing.
    max_scale_step: float = option(1.1, "zoom from frame to frame above this, or below its inverse, rejects the clip")
    max_photometric: float = option(30.0, "difference of neighbours after warping above this rejects the clip, 0..255")
    max_filled: float = option(0.5, "share of a frame without pixels of its own above this rejects the clip, 0..1")

    def __post_init__(self) -> None:
        check_choice("stabilize.preset", self.preset, ("paper", "off"))
        if self.min_matches < 3:  # two always fit exactly
            raise ValueError(f"stabilize.min_matches must be at least 3, got {self.min_matches}")
        if self.max_scale_step <= 1:
            raise ValueError(f"stabilize.max_scale_step must be above 1, got {self.max_scale_step}")


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

    mask_weight: float = option(
        0.1, "lambda of the mask's sparsity prior, times the mean of the mask (README says why)"
    )
    learning_rate: float = option(2e-4, "Adam's step size for both networks")
    beta1: float = option(0.5, "Adam's first moment decay (the paper's momentum term)")
    beta2: float = option(0.999, "Adam's second moment decay")

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"objective.learning_rate must be above 0, got {self.learning_rate}")
        for key in ("beta1", "beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"objective.{key} must be in 0..1 below 1, got {getattr(self, key)}")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Fine-tuning of the discriminator's trunk with a fresh softmax head (paper section 3.3)."""

    iterations: int = option(200, "optimizer steps, the same for every label fraction")
    batch_size: int = option(32, "clips a step")
    learning_rate: float = option(2e-4, "Adam's step size for all layers")
    beta1: float = option(0.5, "Adam's first moment decay")
    dropout: float = option(0.5, "probability of dropping a whole channel before the head")

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.batch_size < 2:  # batch norm needs two clips
            got = f"got {self.iterations} and {self.batch_size}"
            raise ValueError(f"finetune.iterations must be at least 1 and finetune.batch_size at least 2, {got}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"finetune.dropout must be at least 0 and below 1, got {self.dropout}")
