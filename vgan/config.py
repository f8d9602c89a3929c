"""Settings of video processing, models, losses and fine-tuning. `--help` prints the meaning and unit of each field.

Shape legend of the whole project: B batch, C channel, T time, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vgan.scenes.labels import PAPER, labels_of


def option(default: Any, meaning: str) -> Any:
    """Make a dataclass field with a default and the help text, including the unit, that `--help` prints."""
    if isinstance(default, list | dict | set):
        return field(default_factory=lambda: type(default)(default), metadata={"help": meaning})
    return field(default=default, metadata={"help": meaning})


def section(kind: Callable[[], Any], meaning: str) -> Any:
    """Make a field that holds a nested group of options.

    Args:
        kind: dataclass of the group, or a function that returns an instance with other defaults.
        meaning: help text of the group.
    """
    return field(default_factory=kind, metadata={"help": meaning})


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError, naming the option `name` and `value`, unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """Shape, frame rate and number of the clips of a dataset (paper section 3.1)."""

    num_frames: int = option(32, "frames per clip (T), a multiple of 16")
    size: int = option(64, "height and width of a clip, pixels: 32, 64 or 128")
    fps: float = option(25.0, "frame rate after resampling, frames per second")
    stride: int = option(
        32, "distance between the starts of consecutive clips, frames; equal to num_frames for adjacent clips"
    )
    max_per_video: int = option(100, "maximum number of clips per video; 100 in the original code")

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
    """Decoding of a video file into frames with presentation times."""

    backend: str = option("auto", "decoder: pyav, decord, or auto (pyav, then decord if pyav returns no frame)")
    size: int = option(128, "maximum short side of decoded frames, pixels; smaller frames are not enlarged")
    min_fps: float = option(
        15.0, "minimum frame rate of a source, frames per second; repeated frames would pass for lack of motion"
    )
    # 0.2 s is two consecutive lost frames at the lowest accepted rate (3 / 15 s).
    max_gap_s: float = option(
        0.2, "maximum interval between frames within a shot, seconds; a longer one starts a new shot"
    )
    timeout_s: float = option(60.0, "maximum time without output before the decoder is killed, seconds")
    # The slowest decoding measured on one core takes 17 (8K, 60 frames per second, 10-bit HEVC); a busy machine doubles
    # it.
    time_factor: float = option(40.0, "maximum decoding time in addition to timeout_s, seconds per second of video")
    # An 8K picture is 50 MB and H.264 keeps at most 16 of them: 4 GB suffices and still stops a memory leak.
    memory_gb: float = option(4.0, "maximum private memory of the decoding process, GiB (2^30 bytes)")
    segment_s: float = option(600.0, "approximate length of the segments that longer videos are split into, seconds")
    strip_fps: float = option(25.0, "frame rate of clips that are stored as one JPEG strip, frames per second")

    def __post_init__(self) -> None:
        check_choice("decode.backend", self.backend, ("auto", "pyav", "decord"))
        if self.size < 32:
            raise ValueError(f"decode.size must be at least 32 pixels, got {self.size}")
        for name in ("min_fps", "max_gap_s", "timeout_s", "time_factor", "memory_gb", "segment_s", "strip_fps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"decode.{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class ShotConfig:
    """Detection of cuts between shots."""

    # A false cut costs part of a clip, a missed one puts two scenes into one, therefore the bounds are low. At 20 and
    # 2, all five cuts of 23 to 41 in film that fills half of the picture are detected, at 25 three of them.
    min_difference: float = option(20.0, "minimum mean absolute difference of adjacent 64 px frames at a cut, 0..255")
    # The weakest true cut measured during fast motion has a ratio of 2.5.
    ratio: float = option(
        2.0, "minimum ratio of the difference at a cut to those of the preceding frames (third largest of history)"
    )
    history: int = option(6, "number of preceding differences that a cut is compared with; the two largest are ignored")
    # Of the largest changes in 136 uncut videos 1 % are below 0.75, of splices of dissimilar videos 99.6 to 99.9 %.
    max_likeness: float = option(0.75, "upper bound on the correlation of image blocks across a cut, 0..1")

    def __post_init__(self) -> None:
        if self.history < 3:
            raise ValueError(f"shots.history must be at least 3, got {self.history}")
        if not 0 < self.max_likeness <= 1:
            raise ValueError(f"shots.max_likeness must be above 0 and at most 1, got {self.max_likeness}")


@dataclass(frozen=True, kw_only=True)
class ScreenConfig:
    """Low-cost tests of a window of frames before its camera motion is estimated; 0 disables a test.

    Rejected windows are not registered, so these settings are part of the record of how a dataset's clips were made.
    """

    # The lowest of 719 windows of real video is 12.9; black and white windows reach 0.8 from noise.
    min_contrast: float = option(
        4.0, "minimum standard deviation of gray values, 0..255 (reject reason black); 0 disables the test"
    )
    # Still pictures reach 0.05 from re-encoding alone; 1 of 580 windows of UCF101 is below it, and the stillest pianist
    # of UCF101 has 0.054.
    min_activity: float = option(
        0.05,
        "minimum mean absolute difference of adjacent 64 px frames, 0..255 (reject reason static); 0 disables the test",
    )
    # Above the share of 0.4 that a source at decode.min_fps may repeat. 1 % of UCF101's windows have 0.42: their motion
    # is visibly uneven.
    max_frozen: float = option(
        0.45, "maximum share of frames that repeat the preceding one, 0..1 (reject reason frozen); 0 disables the test"
    )
    crop_letterbox: bool = option(True, "crop black bars before any other measurement")

    def __post_init__(self) -> None:
        if self.min_contrast < 0 or self.min_activity < 0 or not 0 <= self.max_frozen <= 1:
            got = f"got {self.min_contrast}, {self.min_activity} and {self.max_frozen}"
            raise ValueError(f"screen.min_contrast and min_activity must be 0 or more, screen.max_frozen 0..1, {got}")


@dataclass(frozen=True, kw_only=True)
class StabilizeConfig:
    """Camera motion removal: SIFT, RANSAC similarity to the clip's first frame, warp, fill (paper section 3.1)."""

    preset: str = option(
        "paper", "algorithm: paper (4-DoF similarity), reference (that of the original script, slow) or off (crop only)"
    )
    keep_failed: bool = option(
        False, "keep clips that fail registration or gates, cropped only (as the original does for UCF101)"
    )
    size: int = option(
        128, "maximum short side of the frames in which matches are refined, pixels; smaller frames are not enlarged"
    )
    # SIFT's cost grows with the area: at 64 px it is a third of that at 128. Pairs that fail are retried at `size`.
    sift_size: int = option(64, "short side of the frames in which SIFT keypoints are detected and matched, pixels")
    num_features: int = option(60, "maximum number of SIFT keypoints per frame")
    ratio: float = option(0.7, "maximum ratio of the best to the second-best match distance (Lowe's ratio test)")
    min_matches: int = option(8, "minimum number of matches between adjacent frames")
    ransac_px: float = option(2.0, "RANSAC inlier threshold, pixels at a short side of 128 px")

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
    """Bounds on the scores stored with every clip, applied when a dataset is packed; new bounds need no decoding."""

    off: list[str] = option([], "reject reasons to disable, e.g. [too_much_fill,still]; empty: none")
    # Measured by an independent tracker on 446 windows of 154 videos, with the bounds chosen on half of the videos. On
    # the other half these two bounds reject 42 of 55 clips whose camera still shakes (2 of them at 1.5 and 0.3) and 5
    # of 125 steady ones.
    max_residual_px: float = option(
        0.95, "maximum RMS inlier error of the worst pair, pixels at 128 px (reject reason large_residual)"
    )
    min_inlier_ratio: float = option(
        0.6, "minimum ratio of inliers to matches of the worst pair (reject reason low_inlier_ratio)"
    )
    # A fast zoom doubles the picture in half a second: 1.06 per frame. Transforms fitted across cuts shrink it to
    # almost nothing. At 1.03 this bound would reject, of 446 clips and in addition to the other bounds, 4 clips that
    # shake and 2 that stabilization improved.
    max_scale_step: float = option(
        1.1, "maximum zoom between adjacent frames, or its inverse (reject reason scale_jump)"
    )
    max_zoom: float = option(
        2.0, "maximum zoom of any frame relative to the first, or its inverse (reject reason large_zoom)"
    )
    # Half of the values of clips that a moving camera took of scenes with depth; their background is still steady.
    max_drift_px: float = option(
        12.0,
        "maximum error of the composed registration of the last frame, pixels at 128 px (reject reason drift)",
    )
    max_photometric: float = option(
        30.0, "maximum mean absolute difference of adjacent frames after warping, 0..255 (reject reason photometric)"
    )
    max_dissolve: float = option(1.0, "maximum score of the fade and dissolve detector (reject reason dissolve)")
    max_filled: float = option(0.5, "maximum share of filled pixels in any frame, 0..1 (reject reason too_much_fill)")
    # The clips with the least motion of 136 UCF101 videos, of archers and of a pianist's hands, have 0.09 to 0.2.
    min_motion: float = option(
        0.05, "minimum mean absolute difference of adjacent frames of a clip, 0..255 (reject reason still)"
    )
    max_motion: float = option(
        40.0, "maximum mean absolute difference of adjacent frames of a clip, 0..255 (reject reason restless)"
    )
    max_per_source: int = option(
        100, "maximum number of clips per video (reject reason source_cap); 100 in the original code"
    )
    # Different scenes: the closest of 233,787 pairs differ in 16 bits. Extrapolated from crops of them, of a million
    # clips 0.5 % are dropped by chance at 8 and 2 % at 10 (crops of half the side, which have less contrast: up to 3
    # and 8 %). Of UCF101 re-encoded (H.264 crf 28, 0.6 of the size) and stabilized, 91 % of good clips are within 8
    # bits and 93 % within 10; of 34 unstabilized ones also cropped by 1.5 % and darkened, 85 % and 97 %, and 47 %
    # within 5.
    duplicate_bits: int = option(
        8, "maximum fingerprint distance of duplicate clips from two videos, bits of 128 (reject reason near_duplicate)"
    )

    def __post_init__(self) -> None:
        for reason in self.off:
            check_choice("gates.off", reason, GATE_REASONS)
        if self.max_per_source < 1 or not 0 <= self.duplicate_bits <= 32:
            got = f"got {self.max_per_source} and {self.duplicate_bits}"
            raise ValueError(f"gates.max_per_source must be at least 1 and gates.duplicate_bits in 0..32, {got}")


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """Scene classification of clips by a Places365 classifier; disabled without `weights`."""

    weights: str = option("", "URL of the classifier's file, a Places365 ResNet or SqueezeNet; empty: no scene filter")
    sha256: str = option(
        "", "SHA-256 digest of the classifier's file, hex; other files are refused; empty: computed from the file"
    )
    categories: list[str] = option(
        list(PAPER), "scene categories scored for every clip: golf, beach, train, baby, or Places365 labels"
    )
    frames: int = option(3, "maximum number of classified frames per interval of a shot")
    stretch_s: float = option(10.0, "length of the intervals of a shot whose clips are classified together, seconds")
    gpus: float = option(0.0, "GPUs per task, e.g. 0.05; 0: classification on the CPU")
    keep: list[str] = option(
        [], "categories whose clips are kept, a subset of categories, applied when packing; empty: all categories"
    )
    threshold: float = option(
        0.2,
        "minimum probability of a kept category, applied when packing (reject reason other_scene); 0: no minimum",
    )

    def __post_init__(self) -> None:
        for category in self.categories:
            labels_of(category)
        if not self.categories or len(set(self.categories)) < len(self.categories):
            raise ValueError(f"scene.categories must list at least one category, each once; got {self.categories}")
        for category in self.keep:
            check_choice("scene.keep", category, tuple(self.categories))
        if self.frames < 1 or self.stretch_s <= 0 or self.gpus < 0:
            got = f"got {self.frames}, {self.stretch_s} and {self.gpus}"
            raise ValueError(f"scene.frames must be at least 1, stretch_s above 0 and gpus 0 or more, {got}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"scene.threshold must be in 0..1, got {self.threshold}")

    @property
    def looked_for(self) -> list[str]:
        """Categories scored for every clip; empty without a classifier."""
        return self.categories if self.sha256 else []


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """Settings of all steps from a video file to its clips."""

    clip: ClipSpec = section(ClipSpec, "shape, frame rate and number of clips")
    decode: DecodeConfig = section(DecodeConfig, "decoding of video files into frames")
    shots: ShotConfig = section(ShotConfig, "detection of cuts between shots")
    screen: ScreenConfig = section(ScreenConfig, "low-cost tests before registration")
    stabilize: StabilizeConfig = section(StabilizeConfig, "camera motion removal")
    gates: GateConfig = section(GateConfig, "bounds on the stored scores, applied when packing")
    scene: SceneConfig = section(SceneConfig, "scene classification of clips")


KINDS = ("two_stream", "one_stream", "future", "autoencoder")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Network architectures: the layer tables of the paper at any width (paper section 2)."""

    kind: str = option(
        "two_stream",
        "network: two_stream (paper equation 2) or one_stream, which generate clips from noise; future, from an image "
        "(section 3.4); or autoencoder, the baseline (section 3.2)",
    )
    base: int = option(64, "channels of the hidden layer with the highest resolution; 64 in the paper")
    z_size: int = option(100, "length of the latent code z (Z)")
    num_frames: int = option(32, "frames per clip (T); must equal that of the dataset")
    size: int = option(64, "height and width of a clip, pixels; must equal that of the dataset")
    future: str = option(
        "paper",
        "image encoder of kind=future: paper (five layers to z) or reference (four layers to a map, twice the width)",
    )
    upsample: str = option(
        "transpose",
        "upsampling layers: transpose (transposed convolutions, as in the paper) or resize (resize, then convolve)",
    )
    discriminator_norm: str = option(
        "batch",
        "normalization in D: batch (batch norm, as in the paper) or spectral (spectral norm of weights, no batch norm)",
    )

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
        """Shape (T, H, W) of the smallest feature map, 1/16 of the clip in each dimension: (2, 4, 4) in the paper."""
        return self.num_frames // 16, self.size // 16, self.size // 16

    @property
    def wide(self) -> bool:
        """True if G and D have the doubled widths of the published future model."""
        return self.kind == "future" and self.future == "reference"


AUGMENTATIONS = ("color", "translation", "cutout")  # see vgan.augment


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Losses and optimizer (paper section 2.4)."""

    loss: str = option(
        "softmax",
        "adversarial loss: softmax (cross entropy, as in the paper) or hinge (https://arxiv.org/abs/1705.02894)",
    )
    mask_weight: float = option(
        0.1,
        "weight (lambda) of the prior on the mask's mean; future=reference needs mask_target, autoencoder ignores it",
    )
    mask_target: float = option(0.0, "target of the mask's mean, 0..1; 0: sparse mask, as in the paper")
    frame_loss: str = option(
        "l2",
        "loss of kind=future between input and first generated frame: l2 (paper equation 3) or l1 (published code)",
    )
    frame_weight: float = option(10.0, "weight (lambda) of the frame loss, a mean over pixels; 0 disables it")
    background_weight: float = option(
        0.0,
        "weight of the frame loss between input and background, kind=future only; 0 disables it, as in the paper",
    )
    match_weight: float = option(
        0.0,
        "weight of the error of real clips to the nearest generated clip per worker, GANs without input; 0 disables it",
    )
    r1_weight: float = option(0.0, "weight (gamma/2) of R1, D's gradient penalty on real clips; 0 disables it")
    augment: list[str] = option(
        [], "augmentations of D's inputs, real and generated: color, translation, cutout; empty: none"
    )
    flip: bool = option(False, "horizontal flip of real clips with probability 1/2")
    learning_rate: float = option(2e-4, "learning rate of Adam")
    learning_rate_ratio: float = option(1.0, "ratio of D's learning rate to learning_rate")
    beta1: float = option(0.5, "first moment decay of Adam (the momentum term of the paper)")
    beta2: float = option(0.999, "second moment decay of Adam")

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
                raise ValueError(f"objective.{key} must be at least 0 and below 1, got {getattr(self, key)}")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Fine-tuning of the discriminator's trunk with a newly initialized softmax head (paper section 3.3)."""

    iterations: int = option(200, "number of optimizer steps, the same for every label fraction")
    batch_size: int = option(32, "clips per step")
    learning_rate: float = option(2e-4, "learning rate of Adam for all layers")
    beta1: float = option(0.5, "first moment decay of Adam")
    dropout: float = option(0.5, "probability of dropping a channel before the head; 0 disables dropout")
    weight_decay: float = option(0.0, "weight decay of AdamW for all layers; 0 disables it")
    precision: str = option("fp32", "floating-point precision: fp32, or bf16 (autocast)")
    # Accuracy in percent on four classes of UCF101 (17 held-out videos in each of three folds, 60 steps of 16 clips),
    # of random weights and of a GAN's at 1/8 and at all of the labels: constant rate without augmentation 78, 76 and
    # 70, 88; flip and cosine 78, 86 and 74, 90; with translation too 80, 82 and 82, 90.
    schedule: str = option("cosine", "learning rate schedule: constant, or cosine (0 at the last step)")
    flip: bool = option(
        True, "horizontal flip of training clips with probability 1/2; disable if left and right distinguish classes"
    )
    augment: list[str] = option(
        ["translation"],
        "augmentations of training clips, drawn per clip and step: color, translation, cutout; empty: none",
    )
    logistic_penalty: float = option(1000.0, "strength of the L2 penalty of init=logistic, on standardized features")

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
