"""Extraction of clips from a video: resampling, shots, windows, stabilization; streaming, one window in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from vgan.errors import VideoError
from vgan.records import Clip, Reject
from vgan.scenes.preprocess import scene_view
from vgan.video import letterbox, prescreen
from vgan.video.config import VideoConfig
from vgan.video.decoding.decode import Frame
from vgan.video.dissolve_detection import dissolve_score
from vgan.video.fingerprint import fingerprint, motion_signs, thumbnails
from vgan.video.quality_filters import first_violation
from vgan.video.resample import RATE_TOLERANCE, resample
from vgan.video.shot_detection import split_shots
from vgan.video.stabilization.stabilize import crop_only, stabilize


def extract_clips(frames: Iterable[Frame], config: VideoConfig) -> Iterator[Clip | Reject]:
    """Yield the clips of one video in order, with all scores, and a Reject for every window or shot without a clip.

    The bounds of `config.filters` are applied later, by `cluster.prepare.selection`, except with `keep_failed`. Stops
    after `config.clip.max_per_video` clips. Closes `frames` if it is a generator. A VideoError raised by `frames`
    ends the iteration with one Reject.
    """
    num_clips = 0
    try:
        for window in iter_windows(frames, config):
            result = window if isinstance(window, Reject) else _clip_from_window(*window, config)
            yield result
            num_clips += isinstance(result, Clip)
            if num_clips == config.clip.max_per_video:
                return
    except VideoError as error:
        yield Reject(start_s=None, stage=error.stage, reason=error.reason, detail=error.detail)
    finally:
        close = getattr(frames, "close", None)
        if close is not None:
            close()


def iter_windows(frames: Iterable[Frame], config: VideoConfig) -> Iterator[tuple[int, list[Frame]] | Reject]:
    """Yield windows (shot, num_frames frames), one per `stride` frames of a shot, and a Reject for a too short shot."""
    clip = config.clip
    slow: list[Reject] = []

    def on_slow_start(start_s: float, detail: str) -> None:
        slow.append(Reject(start_s=start_s, stage="screen", reason="low_frame_rate", detail=detail))

    resampled = resample(frames, clip.fps, config.decode.max_gap_s, config.decode.min_fps, on_slow_start)
    window: deque[Frame] = deque(maxlen=clip.num_frames)
    current, length = 0, 0  # current shot and its number of frames so far
    start_s = 0.0
    for shot, frame in split_shots(resampled, config.shots):
        while slow:
            yield slow.pop()
        if shot != current:
            if length < clip.num_frames:
                yield _too_short(start_s, length, clip.num_frames)
            window.clear()
            current, length = shot, 0
        if length == 0:
            start_s = frame.pts_s
        window.append(frame)
        length += 1
        if length >= clip.num_frames and (length - clip.num_frames) % clip.stride == 0:
            yield shot, list(window)
    if 0 < length < clip.num_frames:
        yield _too_short(start_s, length, clip.num_frames)


def _too_short(start_s: float, length: int, num_frames: int) -> Reject:
    """Build the Reject of a shot of `length` frames that begins at `start_s` seconds."""
    return Reject(start_s=start_s, stage="shots", reason="too_short", detail=f"{length} frames; at least {num_frames}")


def _clip_from_window(shot: int, window: list[Frame], config: VideoConfig) -> Clip | Reject:
    """Crop, screen and stabilize one window; return a Reject with the reason if that fails."""
    start_s = window[0].pts_s
    try:
        _check_rate(window, config)
        pixels = np.stack([frame.image for frame in window])
        uncropped_area = pixels.shape[1] * pixels.shape[2]
        if config.prescreen.crop_letterbox:
            pixels = letterbox.crop(pixels, letterbox.detect_bars(pixels))
        height, width = pixels.shape[1:3]
        if min(height, width) < config.clip.size:
            minimum = f"at least {config.clip.size} on the short side"
            raise VideoError("screen", "too_small", f"{width}x{height} pixels; {minimum}")
        # Repeats from resampling a slower source do not count as frozen: each source frame is measured once.
        source_frames = [t for t, frame in enumerate(window) if t == 0 or frame is not window[t - 1]]
        statistics = prescreen.measure_window(pixels[source_frames])
        prescreen.reject_window(statistics, config.prescreen)
        clip, evidence = stabilize(pixels, config.stabilize, config.clip.size)
        gray = thumbnails(clip)
        scores = {
            "contrast": statistics.contrast,
            "frozen_fraction": statistics.frozen_fraction,
            "letterbox": 1 - height * width / uncropped_area,
            "dissolve": dissolve_score(clip),
            "fingerprint": fingerprint(gray),
            "motion_signs": motion_signs(gray),
        }
        evidence = replace(evidence, **scores)
        if config.stabilize.keep_failed and first_violation(evidence, config.filters):
            clip, plain = crop_only(pixels, config.clip.size)
            evidence = replace(plain, **scores)
    except VideoError as error:
        return Reject(start_s=start_s, stage=error.stage, reason=error.reason, detail=error.detail)
    view = scene_view(pixels[len(pixels) // 2]) if config.scene.sha256 else None
    return Clip(start_s=start_s, shot=shot, frames=clip, evidence=evidence, view=view)


def _check_rate(window: list[Frame], config: VideoConfig) -> None:
    """Raise VideoError for a window with too many repeated frames, from a part of the source with a low frame rate."""
    distinct_fps = config.clip.fps * len({frame.pts_s for frame in window}) / len(window)
    lowest_fps = min(config.decode.min_fps, config.clip.fps) * RATE_TOLERANCE - config.clip.fps / len(window)
    if distinct_fps < lowest_fps:  # lowest_fps allows for one frame lost at the window's edges
        raise VideoError("screen", "low_frame_rate", f"{distinct_fps:.1f} distinct frames per second in this window")
