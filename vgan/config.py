"""Frozen settings of the science. Every field carries its meaning and unit, which `--help` prints.

Shape legend of the whole project: B batch, C channel, T time, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vgan.scenes.labels import PAPER, labels_of


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

    backend: str = option("auto", "auto, pyav or decord; auto tries decord where pyav gives nothing")
    size: int = option(128, "short side frames are reduced to while decoding, pixels; never enlarged")
    min_fps: float = option(15.0, "slower sources are rejected: repeated frames would look like stillness")
    # 0.2 s is two lost frames in a row at the slowest rate accepted (3 / 15 s).
    max_gap_s: float = option(0.2, "a longer hole between frames ends the shot, seconds")
    timeout_s: float = option(60.0, "a decoder that gives nothing for this long is killed, seconds")
    # The slowest that one core was seen at is 17 (8K, 60 frames a second, 10-bit HEVC); a busy machine halves that.
    time_factor: float = option(40.0, "decoding may take timeout_s and this many seconds a second of video")
    # An 8K picture is 50 MB and H.264 keeps at most 16 of them: 4 GB leaves room and still stops a runaway.
    memory_gb: float = option(4.0, "private memory of the decoding process at most, 2^30 bytes")
    segment_s: float = option(600.0, "longer videos are split into segments of about this length, seconds")
    strip_fps: float = option(25.0, "frames a second of clips that are stored as one JPEG strip")

    def __post_init__(self) -> None:
        check_choice("decode.backend", self.backend, ("auto", "pyav", "decord"))
        if self.size < 32:
            raise ValueError(f"decode.size must be at least 32 pixels, got {self.size}")
        for name in ("min_fps", "max_gap_s", "timeout_s", "time_factor", "memory_gb", "segment_s", "strip_fps"):
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
    history: int = option(6, "differences that a cut must stand out from, in frames before it; two are forgiven")
    # Of the largest changes in 136 uncut videos 1 % are below 0.75, of splices of unlike videos 99.6 to 99.9 %.
    max_likeness: float = option(0.75, "and its blocks correlate less than this with those of the frame before, 0..1")

    def __post_init__(self) -> None:
        if self.history < 3:
            raise ValueError(f"shots.history must be at least 3, got {self.history}")
        if not 0 < self.max_likeness <= 1:
            raise ValueError(f"shots.max_likeness must be above 0 and at most 1, got {self.max_likeness}")


@dataclass(frozen=True, kw_only=True)
class ScreenConfig:
    """Cheap tests of a window before its camera motion is estimated. What they refuse is not registered, so they are
    part of what a dataset's clips were made with; 0 switches a test off."""

    # The flattest of 719 windows of real video has 12.9; black and white ones reach 0.8 by their noise.
    min_contrast: float = option(4.0, "black or blank: standard deviation of gray values below this, 0..255")
    # Held pictures come to 0.05 by re-encoding alone; 1 of 580 windows of UCF101 has less, its stillest pianist 0.054.
    min_activity: float = option(0.05, "static: mean difference of neighbouring 64 px frames below this, 0..255")
    # Above the 0.4 that a source at decode.min_fps may repeat. 1 % of UCF101's windows has 0.42: those do judder.
    max_frozen: float = option(0.45, "frozen: share of frames that repeat the one before them above this, 0..1")
    crop_letterbox: bool = option(True, "cut black bars off before anything else is measured")

    def __post_init__(self) -> None:
        if self.min_contrast < 0 or self.min_activity < 0 or not 0 <= self.max_frozen <= 1:
            got = f"got {self.min_contrast}, {self.min_activity} and {self.max_frozen}"
            raise ValueError(f"screen.min_contrast and min_activity must be 0 or more, screen.max_frozen 0..1, {got}")


@dataclass(frozen=True, kw_only=True)
class StabilizeConfig:
    """Camera motion removal: SIFT, RANSAC similarity to the clip's first frame, warp, fill (paper section 3.1)."""

    preset: str = option(
        "paper", "paper: 4-DoF similarity; reference: the original script's algorithm, slow; off: crop only"
    )
    keep_failed: bool = option(False, "keep clips that fail as they are, not stabilized (the original's UCF101)")
    size: int = option(128, "short side that larger frames are reduced to, pixels; matches are refined at this size")
    # SIFT costs by area, at 64 px a third of what it does at 128. Pairs it fails on are tried again at `size`.
    sift_size: int = option(64, "short side at which SIFT finds and matches keypoints, pixels")
    num_features: int = option(60, "SIFT keypoints kept a frame")
    ratio: float = option(0.7, "Lowe's ratio test: best match over second best")
    min_matches: int = option(8, "fewer matches between neighbouring frames: the clip cannot be registered")
    ransac_px: float = option(2.0, "RANSAC inlier threshold, pixels at 128 px short side")

    def __post_init__(self) -> None:
        check_choice("stabilize.preset", self.preset, ("paper", "reference", "off"))
        if self.size < 32 or self.sift_size < 32:
            got = f"got {self.size} and {self.sift_size}"
            raise ValueError(f"stabilize.size and stabilize.sift_size must be at least 32 pixels, {got}")
        if self.min_matches < 3:  # two always fit exactly
            raise ValueError(f"stabilize.min_matches must be at least 3, got {self.min_matches}")


GATE_REASONS = (
    *("low_inlier_ratio", "large_residual", "scale_jump", "photometric", "dissolve", "large_zoom", "drift"),
    *("too_much_fill", "still", "restless", "source_cap", "near_duplicate"),
)


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Bounds on the scores stored with every clip, applied when a dataset is packed: new bounds decode nothing."""

    off: list[str] = option([], "reasons that shall not reject, e.g. [too_much_fill,still]")
    # By an independent tracker on 446 windows of 154 videos, half of the videos to choose on: these two bounds refuse
    # 42 of the other half's 55 clips whose camera still shakes (2 of them at 1.5 and 0.3), and 5 of 125 steady ones.
    max_residual_px: float = option(0.95, "large_residual: RMS inlier error of the worst pair, pixels at 128 px")
    min_inlier_ratio: float = option(0.6, "low_inlier_ratio: inliers over matches of the worst pair")
    # A fast zoom doubles the picture in half a second: 1.06 a frame. Models fitted across cuts shrink it to nothing. At
    # 1.03 it would refuse, besides what the others do, 4 clips that shake and 2 made better, of 446.
    max_scale_step: float = option(1.1, "scale_jump: zoom from one frame to the next, or its inverse")
    max_zoom: float = option(2.0, "large_zoom: zoom of any frame against the first, or its inverse")
    # Half of what the clips of deep scenes seen from a moving camera reach, whose far parts stand still all the same.
    max_drift_px: float = option(
        12.0, "drift: composed against direct registration of the last frame, pixels at 128 px"
    )
    max_photometric: float = option(30.0, "photometric: difference of neighbours after warping, 0..255")
    max_dissolve: float = option(1.0, "dissolve: score of the longer-lag check for fades and dissolves")
    max_filled: float = option(0.5, "too_much_fill: share of a frame without pixels of its own, 0..1")
    # The stillest clips of 136 UCF101 videos, of archers and of a pianist's hands, have 0.09 to 0.2.
    min_motion: float = option(0.05, "still: mean difference of neighbouring frames of the clip, 0..255")
    max_motion: float = option(40.0, "restless: mean difference of neighbouring frames of the clip, 0..255")
    max_per_source: int = option(100, "source_cap: clips taken from one video at most (the original's cap)")
    # Unlike scenes: the nearest of 233,787 pairs differ in 16. Extrapolated from crops of them, of a million clips
    # 0.5 % are dropped by chance at 8 and 2 % at 10 (crops of half the side, which are flatter: up to 3 and 8 %). Of
    # UCF101 encoded again (H.264 crf 28, 0.6 of the size) and stabilized, 91 % of good clips are within 8 bits, 93 %
    # within 10; of 34 plain ones also cropped by 1.5 % and darkened 85 % and 97 %, and 47 % within 5.
    duplicate_bits: int = option(8, "near_duplicate: clips of two videos whose fingerprints differ by so many bits")

    def __post_init__(self) -> None:
        for reason in self.off:
            check_choice("gates.off", reason, GATE_REASONS)
        if self.max_per_source < 1 or not 0 <= self.duplicate_bits <= 32:
            got = f"got {self.max_per_source} and {self.duplicate_bits}"
            raise ValueError(f"gates.max_per_source must be at least 1 and gates.duplicate_bits in 0..32, {got}")


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """Which scenes clips show, told by a Places365 classifier. Without `weights` nothing is looked at."""

    weights: str = option("", "url of a classifier's file: a Places365 ResNet or the SqueezeNet; empty: no filter")
    sha256: str = option("", "of that file; another one is refused. Empty: it is found out")
    categories: list[str] = option(list(PAPER), "scored for every clip: golf, beach, train, baby, or Places365 labels")
    frames: int = option(3, "pictures looked at in each stretch of a shot")
    stretch_s: float = option(10.0, "clips of a shot that begin within this time are looked at together, seconds")
    gpus: float = option(0.0, "share of a GPU that each task asks for, e.g. 0.05; 0: the classifier runs on its core")
    keep: list[str] = option([], "applied last: only clips of these of the categories; empty: of any of them")
    threshold: float = option(0.2, "applied last, other_scene: probability that a category must reach; 0 keeps all")

    def __post_init__(self) -> None:
        for category in self.categories:
            labels_of(category)
        if not self.categories or len(set(self.categories)) < len(self.categories):
            raise ValueError(f"scene.categories must name categories, each once; got {self.categories}")
        for category in self.keep:
            check_choice("scene.keep", category, tuple(self.categories))
        if self.frames < 1 or self.stretch_s <= 0 or self.gpus < 0:
            got = f"got {self.frames}, {self.stretch_s} and {self.gpus}"
            raise ValueError(f"scene.frames must be at least 1, stretch_s above 0 and gpus 0 or more, {got}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"scene.threshold must be in 0..1, got {self.threshold}")

    @property
    def looked_for(self) -> list[str]:
        """The categories that every clip has a score for; none without a classifier."""
        return self.categories if self.sha256 else []


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """Everything between a video file and its clips."""

    clip: ClipSpec = section(ClipSpec, "shape of a clip")
    decode: DecodeConfig = section(DecodeConfig, "file to frames")
    shots: ShotConfig = section(ShotConfig, "frames to shots")
    screen: ScreenConfig = section(ScreenConfig, "cheap tests before registration")
    stabilize: StabilizeConfig = section(StabilizeConfig, "camera motion removal")
    gates: GateConfig = section(GateConfig, "bounds on the stored scores, applied last")
    scene: SceneConfig = section(SceneConfig, "which scenes clips show")


KINDS = ("two_stream", "one_stream", "future", "autoencoder")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The networks: layer tables of the paper at any width (paper section 2)."""

    kind: str = option(
        "two_stream",
        "two_stream (paper equation 2) and one_stream draw clips from noise, future from an image (section 3.4); "
        "autoencoder is the baseline (section 3.2)",
    )
    base: int = option(64, "channels of the widest-resolution hidden layer; 64 is the paper's")
    z_size: int = option(100, "length of the latent code z (Z)")
    num_frames: int = option(32, "frames of a clip (T); must equal the dataset's")
    size: int = option(64, "height and width of a clip, pixels; must equal the dataset's")
    future: str = option(
        "paper", "of kind=future: paper, five layers to z; reference, four layers to a map, twice the width"
    )
    upsample: str = option("transpose", "transpose, the paper's transposed convolutions; resize, then convolve")
    discriminator_norm: str = option("batch", "batch, the paper's; spectral, of weights, with no batch norm in D")

    def __post_init__(self) -> None:
        check_choice("model.kind", self.kind, KINDS)
        check_choice("model.future", self.future, ("paper", "reference"))
        check_choice("model.upsample", self.upsample, ("transpose", "resize"))
        check_choice("model.discriminator_norm", self.discriminator_norm, ("batch", "spectral"))
        if self.base < 1 or self.z_size < 1:
            raise ValueError(f"model.base and model.z_size must be at least 1, got {self.base} and {self.z_size}")
        if self.num_frames < 16 or self.num_frames % 16:
            raise ValueError(f"model.num_frames must be a multiple of 16, got {self.num_frames}")
        if self.size not in (32, 64, 128):
            raise ValueError(f"model.size must be 32, 64 or 128, got {self.size}")

    @property
    def code_shape(self) -> tuple[int, int, int]:
        """(T, H, W) of the smallest map, four halvings below the clip: (2, 4, 4) in the paper."""
        return self.num_frames // 16, self.size // 16, self.size // 16

    @property
    def wide(self) -> bool:
        """Whether the published future model's double widths apply, to G and D."""
        return self.kind == "future" and self.future == "reference"


AUGMENTATIONS = ("color", "translation", "cutout")  # see vgan.augment


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Losses and optimizer (paper section 2.4)."""

    loss: str = option("softmax", "softmax cross entropy, the paper's; hinge (https://arxiv.org/abs/1705.02894)")
    mask_weight: float = option(
        0.1, "lambda of the prior on the mask's mean; autoencoder has none, future=reference with a target alone"
    )
    mask_target: float = option(0.0, "mean that the prior pulls the mask to; 0 is the paper's sparsity")
    frame_loss: str = option("l2", "of kind=future, input against first frame drawn: l2 (equation 3); l1 (its code)")
    frame_weight: float = option(10.0, "lambda of the frame loss, a mean over pixels")
    background_weight: float = option(
        0.0, "of kind=future, weight of the same loss between input and still background; 0 is off, as the paper"
    )
    match_weight: float = option(
        0.0,
        "weight of the error of each real clip to the nearest one its worker drew, of GANs without input; 0 is off",
    )
    r1_weight: float = option(0.0, "gamma/2 of R1, D's gradient penalty on real clips; 0 is off")
    augment: list[str] = option([], "of D's inputs, real and drawn alike: color, translation, cutout")
    flip: bool = option(False, "mirror every other real clip")
    learning_rate: float = option(2e-4, "Adam's step size")
    learning_rate_ratio: float = option(1.0, "D's step size over learning_rate")
    beta1: float = option(0.5, "Adam's first moment decay (the paper's momentum term)")
    beta2: float = option(0.999, "Adam's second moment decay")

    def __post_init__(self) -> None:
        check_choice("objective.loss", self.loss, ("softmax", "hinge"))
        check_choice("objective.frame_loss", self.frame_loss, ("l1", "l2"))
        for name in self.augment:
            check_choice("objective.augment", name, AUGMENTATIONS)
        for key in ("learning_rate", "learning_rate_ratio"):
            if not 0 < getattr(self, key) < math.inf:
                raise ValueError(f"objective.{key} must be above 0, got {getattr(self, key)}")
        for key in ("mask_weight", "frame_weight", "background_weight", "match_weight", "r1_weight"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"objective.{key} must be 0 or more, got {getattr(self, key)}")
        if not 0 <= self.mask_target <= 1:
            raise ValueError(f"objective.mask_target must be in 0..1, got {self.mask_target}")
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
    weight_decay: float = option(0.0, "AdamW's, of all layers")
    precision: str = option("fp32", "fp32, or bf16 for autocast")
    # On four classes of UCF101, 17 held-out videos in each of three folds, 60 steps of 16 clips, accuracy in percent of
    # random weights and of a GAN's at 1/8 and all of the labels: plain 78, 76 and 70, 88; mirrored clips and a cosine
    # 78, 86 and 74, 90; shifted ones too 80, 82 and 82, 90.
    schedule: str = option("cosine", "of the step size: constant; cosine, down to 0 at the last step")
    flip: bool = option(True, "mirror every other training clip; not where left and right tell classes apart")
    augment: list[str] = option(
        ["translation"], "of training clips: color, translation, cutout, each clip anew at every step"
    )
    logistic_penalty: float = option(1000.0, "of init logistic: strength of its L2 penalty, on standardized features")

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.batch_size < 2:  # batch norm needs two clips
            got = f"got {self.iterations} and {self.batch_size}"
            raise ValueError(f"finetune.iterations must be at least 1 and finetune.batch_size at least 2, {got}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"finetune.dropout must be at least 0 and below 1, got {self.dropout}")
        check_choice("finetune.precision", self.precision, ("fp32", "bf16"))
        check_choice("finetune.schedule", self.schedule, ("constant", "cosine"))
        for name in self.augment:
            check_choice("finetune.augment", name, AUGMENTATIONS)
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"finetune.weight_decay must be 0 or more, got {self.weight_decay}")
        if self.logistic_penalty <= 0:
            raise ValueError(f"finetune.logistic_penalty must be above 0, got {self.logistic_penalty}")
