"""Inspection page: clips before and after stabilization with their scores, as one self-contained HTML file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from vgan.records import ClipScores
from vgan.video.encode import write_mp4
from vgan.viz.panels import film_strip, sample_grid
from vgan.viz.report import Media, RejectCount, page_environment

SCALE = 2  # screen pixels per clip pixel
HIDDEN = ("fingerprint", "motion_signs", "stabilized")  # scores omitted from the page: not informative to a reader


@dataclass(frozen=True, kw_only=True)
class InspectedClip:
    """One clip shown on the page."""

    title: str  # source and start time
    before: np.ndarray  # (T, H, W, 3) uint8, cropped and not stabilized
    after: np.ndarray  # (T, H, W, 3) uint8, stabilized
    evidence: ClipScores
    verdict: str  # reason and detail of the rejection; empty for an accepted clip
    strain: float  # largest fraction of any threshold that the scores use; above 1 the clip is rejected


@dataclass(frozen=True, kw_only=True)
class Group:
    """A section of the page: heading, description and clips."""

    title: str
    about: str
    clips: tuple[InspectedClip, ...]


@dataclass(frozen=True, kw_only=True)
class SceneSheet:
    """Clip counts and example frames of one scene category."""

    category: str
    clips: int  # number of clips that reach the threshold
    videos: int  # number of videos with such a clip
    mean: float  # mean probability over all clips of the dataset
    pictures: np.ndarray  # (N, H, W, 3) uint8: middle frames of the highest-scoring clips, best first


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Content of the inspection page."""

    title: str
    created: str  # date and dataset digest
    funnel: tuple[tuple[str, int], ...]  # (name, count), largest first
    rejects: tuple[RejectCount, ...]
    groups: tuple[Group, ...]
    fps: float  # frames per second
    scenes: tuple[SceneSheet, ...] = ()
    likeliest: tuple[tuple[str, int], ...] = ()  # (Places365 label, number of clips)


def render_inspection(inspection: Inspection) -> str:
    """Render the HTML page: looping videos side by side, strips of every fourth frame and scores of each clip."""
    environment = page_environment()
    environment.filters["score"] = lambda value: f"{value:.3g}" if isinstance(value, float) else str(value)
    return environment.get_template("inspector.html").render(
        page=inspection,
        video=lambda clip: _video(clip, inspection.fps),
        strips=_strips,
        sheet=_sheet,
        scores=lambda evidence: {k: v for k, v in asdict(evidence).items() if k not in HIDDEN},
    )


def _video(clip: InspectedClip, fps: float) -> Media:
    """Encode the clip before and after stabilization, side by side, as MP4."""
    side_by_side = np.concatenate([clip.before, clip.after], axis=2).repeat(SCALE, 1).repeat(SCALE, 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_mp4(side_by_side, path, fps)
        return Media.from_file(path, alt=f"{clip.title}: before and after stabilization")


def _sheet(scene: SceneSheet) -> Media:
    """Arrange the pictures of a category in rows of eight; clips below the threshold are faded."""
    pictures = scene.pictures.copy()
    pictures[scene.clips :] = 192 + pictures[scene.clips :] // 4
    grid = sample_grid(pictures[:, None], columns=min(8, len(pictures)), scale=SCALE)[0]
    return _jpeg(grid, alt=f"highest-scoring clips of {scene.category}")


def _strips(clip: InspectedClip) -> Media:
    """Draw every fourth frame, before stabilization above after."""
    rows: Sequence[np.ndarray] = [film_strip(clip.before), film_strip(clip.after)]
    picture = np.vstack([rows[0], np.full((4, rows[0].shape[1], 3), 255, np.uint8), rows[1]])
    return _jpeg(picture, alt=f"{clip.title}: frames before (top) and after")


def _jpeg(picture: np.ndarray, alt: str) -> Media:
    """Encode an RGB picture (H, W, 3) uint8 as JPEG of quality 90."""
    data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    return Media(data=data.tobytes(), media_type="image/jpeg", alt=alt)
