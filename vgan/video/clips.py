"""The video line: frames to fixed rate, shots, windows, stabilized clips. Pure, streaming, one window in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from vgan.config import VideoConfig
from vgan.errors import BadVideo
from vgan.records import Clip, Reject
from vgan.scenes.view import scene_view
from vgan.video import letterbox, screen
from vgan.video.decode import Frame
from vgan.video.dissolve import dissolve_score
from vgan.video.fingerprint import fingerprint
from vgan.video.gates import verdict
from vgan.video.resample import RATE_TOLERANCE, resample
from vgan.video.shots import split_shots
from vgan.video.stabilize import stabilize, unstabilized


def clips_from_video(frames: Iterable[Frame], config: VideoConfig) -> Iterator[Clip | Reject]:
    """Clips of one video in order with all their scores, and a Reject for every window and shot that gave none.

    The bounds of `config.gates` are not applied here but when the dataset is packed.

    Stops after `config.clip.max_per_video` clips and then closes `frames` if it is a generator.
    A BadVideo raised by `frames` does not come through: the clips already given stand, and one Reject tells.
    """
    num_clips = 0
    try:
        for window in _windows(frames, config):
            result = window if isinstance(window, Reject) else _clip_from_window(*window, config)
            yield result
            num_clips += isinstance(result, Clip)
            if num_clips == config.clip.max_per_video:
                return
    except BadVideo as fault:
        yield Reject(start_s=None, stage=fault.stage, reason=fault.reason, detail=fault.detail)
    finally:
        close = getattr(frames, "close", None)
        if close is not None:
            close()


def _windows(frames: Iterable[Frame], config: VideoConfig) -> Iterator[tuple[int, list[Frame]] | Reject]:
    """(shot, num_frames frames) every `stride` frames of a shot; a Reject for a shot that is too short for one."""
    clip = config.clip
    at_fixed_rate = resample(frames, clip.fps, config.decode.max_gap_s, config.decode.min_fps)
    held: deque[Frame] = deque(maxlen=clip.num_frames)
    current, length = 0, 0  # the shot and its frames so far
    start_s = 0.0
    for shot, frame in split_shots(at_fixed_rate, config.shots):
        if shot != current:
            if length < clip.num_frames:
                yield _too_short(start_s, length, clip.num_frames)
            held.clear()
            current, length = shot, 0
        if length == 0:
            start_s = frame.pts_s
        held.append(frame)
        length += 1
        if length >= clip.num_frames and (length - clip.num_frames) % clip.stride == 0:
            yield shot, list(held)
    if 0 < length < clip.num_frames:
        yield _too_short(start_s, length, clip.num_frames)


def _too_short(start_s: float, length: int, num_frames: int) -> Reject:
    return Reject(start_s=start_s, stage="shots", reason="too_short", detail=f"{length} frames; at least {num_frames}")


def _clip_from_window(shot: int, window: list[Frame], config: VideoConfig) -> Clip | Reject:
    """Crop, screen and stabilize one window, or say why it cannot be a clip."""
    start_s = window[0].pts_s
    try:
        _check_rate(window, config)
        pixels = np.stack([frame.image for frame in window])
        whole = pixels.shape[1] * pixels.shape[2]
        if config.screen.crop_letterbox:
            pixels = letterbox.crop(pixels, letterbox.bars(pixels))
        height, width = pixels.shape[1:3]
        if min(height, width) < config.clip.size:
            least = f"at least {config.clip.size} on the short side"
            raise BadVideo("screen", "too_small", f"{width}x{height} pixels; {least}")
        # Repeats of a slower source are no frozen frames: each of its own frames is looked at once.
        own = [t for t, frame in enumerate(window) if t == 0 or frame is not window[t - 1]]
        look = screen.look(pixels[own])
        screen.check(look, config.screen)
        clip, evidence = stabilize(pixels, config.stabilize, config.clip.size)
        scores = {
            "contrast": look.contrast,
            "frozen_fraction": look.frozen_fraction,
            "letterbox": 1 - height * width / whole,
            "dissolve": dissolve_score(clip),
            "fingerprint": fingerprint(clip),
        }
        evidence = replace(evidence, **scores)
        if config.stabilize.keep_failed and evidence.stabilized and verdict(evidence, config.gates):
            clip, plain = unstabilized(pixels, config.clip.size)
            evidence = replace(plain, **scores)
    except BadVideo as fault:
        return Reject(start_s=start_s, stage=fault.stage, reason=fault.reason, detail=fault.detail)
    view = scene_view(pixels[len(pixels) // 2]) if config.scene.sha256 else None
    return Clip(start_s=start_s, shot=shot, frames=clip, evidence=evidence, view=view)


def _check_rate(window: list[Frame], config: VideoConfig) -> None:
    """Raise BadVideo for a window that repeats too many frames: its source was slow here."""
    distinct_fps = config.clip.fps * len({frame.pts_s for frame in window}) / len(window)
    lowest_fps = min(config.decode.min_fps, config.clip.fps) * RATE_TOLERANCE - config.clip.fps / len(window)
    if distinct_fps < lowest_fps:  # a window's edges may cost one frame
        raise BadVideo("screen", "low_frame_rate", f"{distinct_fps:.1f} of its own frames a second here")
