"""Settings of everything between a video file and its clips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vgan.options import check_choice, option, section
from vgan.scenes.config import SceneConfig


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
    short_side: int = option(128, "maximum short side of decoded frames, pixels; smaller frames are not enlarged")
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
    timeout_per_video_second: float = option(
        40.0, "maximum decoding time in addition to timeout_s, seconds per second of video"
    )
    # An 8K picture is 50 MB and H.264 keeps at most 16 of them: 4 GB suffices and still stops a memory leak.
    memory_gb: float = option(4.0, "maximum private memory of the decoding process, GiB (2^30 bytes)")
    segment_s: float = option(600.0, "approximate length of the segments that longer videos are split into, seconds")
    strip_fps: float = option(25.0, "frame rate of clips that are stored as one JPEG strip, frames per second")

    def __post_init__(self) -> None:
        check_choice("decode.backend", self.backend, ("auto", "pyav", "decord"))
        if self.short_side < 32:
            raise ValueError(f"decode.short_side must be at least 32 pixels, got {self.short_side}")
        for name in (
            "min_fps",
            "max_gap_s",
            "timeout_s",
            "timeout_per_video_second",
            "memory_gb",
            "segment_s",
            "strip_fps",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"decode.{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class ShotConfig:
    """Detection of cuts between shots."""

    # A false cut costs part of a clip, a missed one puts two scenes into one, therefore the bounds are low. At 20 and
    # 2, all five cuts of 23 to 41 in film that fills half of the picture are detected, at 25 three of them.
    min_difference: float = option(20.0, "minimum mean absolute difference of adjacent 64 px frames at a cut, 0..255")
    # The weakest true cut measured during fast motion has a ratio of 2.5.
    difference_ratio: float = option(
        2.0, "minimum ratio of the difference at a cut to those of the preceding frames (third largest of history)"
    )
    history_frames: int = option(
        6, "number of preceding differences that a cut is compared with; the two largest are ignored"
    )
    # Of the largest changes in 136 uncut videos 1 % are below 0.75, of splices of dissimilar videos 99.6 to 99.9 %.
    max_block_similarity: float = option(0.75, "upper bound on the correlation of image blocks across a cut, 0..1")

    def __post_init__(self) -> None:
        if self.history_frames < 3:
            raise ValueError(f"shots.history_frames must be at least 3, got {self.history_frames}")
        if not 0 < self.max_block_similarity <= 1:
            raise ValueError(
                f"shots.max_block_similarity must be above 0 and at most 1, got {self.max_block_similarity}"
            )


@dataclass(frozen=True, kw_only=True)
class PrescreenConfig:
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
    max_frozen_fraction: float = option(
        0.45, "maximum share of frames that repeat the preceding one, 0..1 (reject reason frozen); 0 disables the test"
    )
    crop_letterbox: bool = option(True, "crop black bars before any other measurement")

    def __post_init__(self) -> None:
        if self.min_contrast < 0 or self.min_activity < 0 or not 0 <= self.max_frozen_fraction <= 1:
            got = f"got {self.min_contrast}, {self.min_activity} and {self.max_frozen_fraction}"
            raise ValueError(
                f"prescreen.min_contrast and min_activity must be 0 or more, prescreen.max_frozen_fraction 0..1, {got}"
            )


@dataclass(frozen=True, kw_only=True)
class StabilizeConfig:
    """Camera motion removal: SIFT, RANSAC similarity to the clip's first frame, warp, fill (paper section 3.1)."""

    preset: str = option(
        "adaptive",
        "algorithm: adaptive (similarity or homography of tracked points, or a static camera), paper (4-DoF similarity "
        "of SIFT matches), reference (that of the original script, slow) or off (crop only)",
    )
    keep_failed: bool = option(
        False, "keep clips that fail registration or filters, cropped only (as the original does for UCF101)"
    )
    size: int = option(
        128, "maximum short side of the frames in which matches are refined, pixels; smaller frames are not enlarged"
    )
    # SIFT's cost grows with the area: at 64 px it is a third of that at 128. Pairs that fail are retried at `size`.
    sift_size: int = option(64, "short side of the frames in which SIFT keypoints are detected and matched, pixels")
    num_keypoints: int = option(60, "maximum number of SIFT keypoints per frame")
    lowe_ratio: float = option(0.7, "maximum ratio of the best to the second-best match distance (Lowe's ratio test)")
    min_matches: int = option(8, "minimum number of matches between adjacent frames")
    ransac_px: float = option(2.0, "RANSAC inlier threshold, pixels at a short side of 128 px")

    def __post_init__(self) -> None:
        check_choice("stabilize.preset", self.preset, ("adaptive", "paper", "reference", "off"))
        if self.size < 32 or self.sift_size < 32:
            got = f"got {self.size} and {self.sift_size}"
            raise ValueError(f"stabilize.size and stabilize.sift_size must be at least 32 pixels, {got}")
        if self.min_matches < 3:  # two always fit exactly
            raise ValueError(f"stabilize.min_matches must be at least 3, got {self.min_matches}")


FILTER_REASONS = (
    *(
        "unregistered",
        "residual_motion",
        "low_agreement",
        "distortion",
        "low_inlier_ratio",
        "large_residual",
        "scale_jump",
        "photometric",
        "dissolve",
        "large_zoom",
        "drift",
    ),
    *("too_much_fill", "still", "restless", "source_cap", "near_duplicate"),
)


# Values of the bounds that a preset changes; the defaults of `FilterConfig` are those of "strict".
FILTER_PRESETS: dict[str, dict[str, Any]] = {
    "strict": {},
    "paper": {
        "keep_unregistered": True,
        "max_residual_motion_px": 1000.0,
        "min_agreement": 0.0,
        "min_inlier_ratio": 0.0,
        "max_residual_px": 1000.0,
        "max_zoom_step": 1000.0,
        "max_zoom": 1000.0,
        "max_distortion_px": 1000.0,
        "max_drift_px": 1000.0,
        "max_filled_fraction": 1.0,
    },
}


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Bounds on the scores stored with every clip, applied when a dataset is packed; new bounds need no decoding."""

    preset: str = option(
        "strict",
        "bounds by purpose: strict (steady clips, for generation) or paper (representation learning; rejects little "
        "more than the paper); explicit bounds override it",
        "common",
    )
    disabled: list[str] = option([], "reject reasons to disable, e.g. [too_much_fill,still]; empty: none")
    keep_unregistered: bool = option(
        False, "keep windows whose camera motion could not be estimated, cropped only (else reject reason unregistered)"
    )
    max_residual_motion_px: float = option(
        0.45,
        "maximum RMS global motion that remains in a clip, pixels per frame at 128 px (reject reason residual_motion)",
    )
    max_residual_motion_share: float = option(
        0.4,
        "clips with more motion are kept if it is at most this share of the motion before stabilization, 0..1; 0: none",
    )
    # Chosen with the two bounds above on 232 windows of the tuning groups: 89 % of those that any stabilizer registers
    # well are kept, 4 % of what is kept shakes by the tracker and 5 % by dense flow.
    min_agreement: float = option(
        0.35, "minimum share of a clip's blocks that follow its global motion, 0..1 (reject reason low_agreement)"
    )
    # Measured by an independent tracker on 446 windows of 154 videos, with the bounds chosen on half of the videos. On
    # the other half these two bounds reject 42 of 55 clips whose camera still shakes (2 of them at 1.5 and 0.3) and 5
    # of 125 steady ones.
    max_residual_px: float = option(
        0.95, "maximum RMS inlier error of the worst pair, pixels at 128 px (reject reason large_residual)"
    )
    min_inlier_ratio: float = option(
        0.3, "minimum ratio of inliers to matches of the worst pair (reject reason low_inlier_ratio)"
    )
    # A fast zoom doubles the picture in half a second: 1.06 per frame. Transforms fitted across cuts shrink it to
    # almost nothing. At 1.03 this bound would reject, of 446 clips and in addition to the other bounds, 4 clips that
    # shake and 2 that stabilization improved.
    max_zoom_step: float = option(
        1.1, "maximum zoom between adjacent frames, or its inverse (reject reason scale_jump)"
    )
    max_zoom: float = option(
        2.5, "maximum zoom of any frame relative to the first, or its inverse (reject reason large_zoom)"
    )
    # By eye, clips with 34 to 70 px are sheared and those with up to 12 px are not (10 windows of two classes).
    max_distortion_px: float = option(
        25.0,
        "maximum distance of a frame's homography from a similarity, RMS of the corners, pixels at 128 px (reject "
        "reason distortion)",
    )
    # Half of the values of clips that a moving camera took of scenes with depth; their background is still steady.
    max_drift_px: float = option(
        12.0,
        "maximum error of the composed registration of the last frame, pixels at 128 px (reject reason drift)",
    )
    max_photometric_error: float = option(
        30.0, "maximum mean absolute difference of adjacent frames after warping, 0..255 (reject reason photometric)"
    )
    max_dissolve: float = option(1.0, "maximum score of the fade and dissolve detector (reject reason dissolve)")
    max_filled_fraction: float = option(
        0.9, "maximum share of filled pixels in any frame, 0..1 (reject reason too_much_fill)"
    )
    # The clips with the least motion of 136 UCF101 videos, of archers and of a pianist's hands, have 0.09 to 0.2.
    min_motion: float = option(
        0.05, "minimum mean absolute difference of adjacent frames of a clip, 0..255 (reject reason still)"
    )
    max_motion: float = option(
        40.0, "maximum mean absolute difference of adjacent frames of a clip, 0..255 (reject reason restless)"
    )
    max_clips_per_video: int = option(
        100, "maximum number of clips per video (reject reason source_cap); 100 in the original code"
    )
    # Different scenes: the closest of 233,787 pairs differ in 16 bits. Extrapolated from crops of them, of a million
    # clips 0.5 % are dropped by chance at 8 and 2 % at 10 (crops of half the side, which have less contrast: up to 3
    # and 8 %). Of UCF101 re-encoded (H.264 crf 28, 0.6 of the size) and stabilized, 91 % of good clips are within 8
    # bits and 93 % within 10; of 34 unstabilized ones also cropped by 1.5 % and darkened, 85 % and 97 %, and 47 %
    # within 5.
    max_duplicate_distance_bits: int = option(
        8, "maximum fingerprint distance of duplicate clips from two videos, bits of 128 (reject reason near_duplicate)"
    )
    # Of 189 pairs of other moments of one take whose pictures are alike, 18, 15, 13 and 10 are dropped at 0.5, 0.55,
    # 0.6 and 0.65; of 448 copies found by their pictures, 99.1, 98.9, 98.2 and 97.8 %.
    min_duplicate_similarity: float = option(
        0.55,
        "minimum similarity of the motion of duplicate clips, -1..1 (reject reason near_duplicate); -1: pictures alone",
    )

    def __post_init__(self) -> None:
        check_choice("filters.preset", self.preset, tuple(FILTER_PRESETS))
        for reason in self.disabled:
            check_choice("filters.disabled", reason, FILTER_REASONS)
        if self.max_clips_per_video < 1 or not 0 <= self.max_duplicate_distance_bits <= 32:
            got = f"got {self.max_clips_per_video} and {self.max_duplicate_distance_bits}"
            raise ValueError(
                "filters.max_clips_per_video must be at least 1 and filters.max_duplicate_distance_bits in 0..32, "
                f"{got}"
            )
        if not -1 <= self.min_duplicate_similarity <= 1:
            raise ValueError(f"filters.min_duplicate_similarity must be in -1..1, got {self.min_duplicate_similarity}")


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """Settings of all steps from a video file to its clips."""

    clip: ClipSpec = section(ClipSpec, "shape, frame rate and number of clips")
    decode: DecodeConfig = section(DecodeConfig, "decoding of video files into frames")
    shots: ShotConfig = section(ShotConfig, "detection of cuts between shots")
    prescreen: PrescreenConfig = section(PrescreenConfig, "low-cost tests before registration")
    stabilize: StabilizeConfig = section(StabilizeConfig, "camera motion removal")
    filters: FilterConfig = section(FilterConfig, "bounds on the stored scores, applied when packing")
    scene: SceneConfig = section(SceneConfig, "scene classification of clips")
