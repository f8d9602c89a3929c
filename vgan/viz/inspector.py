"""The inspector: clips before and after stabilization with their scores, as one html file that needs nothing else."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from vgan.records import Evidence
from vgan.video.encode import write_mp4
from vgan.viz.panels import sample_grid, strip
from vgan.viz.report import Media, RejectCount, page_environment

SCALE = 2  # screen pixels a clip's pixel
HIDDEN = ("fingerprint", "stabilized")  # scores that say nothing to a person


@dataclass(frozen=True, kw_only=True)
class InspectedClip:
    """One clip for people to look at."""

    title: str  # source and start
    before: np.ndarray  # (T, H, W, 3) uint8, cropped only
    after: np.ndarray  # (T, H, W, 3) uint8
    evidence: Evidence
    verdict: str  # "" or the reason and detail of its rejection
    strain: float  # largest share of any bound it uses up; above 1 it is rejected


@dataclass(frozen=True, kw_only=True)
class Group:
    """A heading and its clips."""

    title: str
    about: str
    clips: tuple[InspectedClip, ...]


@dataclass(frozen=True, kw_only=True)
class SceneSheet:
    """What a scene category holds."""

    category: str
    clips: int  # that reach the threshold
    videos: int
    mean: float  # probability over all clips of the dataset
    pictures: np.ndarray  # (N, H, W, 3) uint8: the middles of the clips with the highest scores, best first


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Everything the page shows."""

    title: str
    created: str
    funnel: tuple[tuple[str, int], ...]  # (what, count), widest first
    rejects: tuple[RejectCount, ...]
    groups: tuple[Group, ...]
    fps: float
    scenes: tuple[SceneSheet, ...] = ()
    likeliest: tuple[tuple[str, int], ...] = ()  # (label of Places365, clips)


def render_inspection(inspection: Inspection) -> str:
    """The page as html text: looping videos side by side, strips of every fourth frame, and the scores of each clip."""
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
    """Before and after side by side, looping."""
    both = np.concatenate([clip.before, clip.after], axis=2).repeat(SCALE, 1).repeat(SCALE, 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_mp4(both, path, fps)
        return Media.from_file(path, alt=f"{clip.title}: before and after stabilization")


def _sheet(scene: SceneSheet) -> Media:
    """The pictures of a category in rows of eight, pale where the clip does not reach the threshold."""
    pictures = scene.pictures.copy()
    pictures[scene.clips :] = 192 + pictures[scene.clips :] // 4
    grid = sample_grid(pictures[:, None], columns=min(8, len(pictures)), scale=SCALE)[0]
    return _jpeg(grid, alt=f"clips most like {scene.category}")


def _strips(clip: InspectedClip) -> Media:
    """Every fourth frame, before above after."""
    rows: Sequence[np.ndarray] = [strip(clip.before), strip(clip.after)]
    picture = np.vstack([rows[0], np.full((4, rows[0].shape[1], 3), 255, np.uint8), rows[1]])
    return _jpeg(picture, alt=f"{clip.title}: frames before (top) and after")


def _jpeg(picture: np.ndarray, alt: str) -> Media:
    data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    return Media(data=data.tobytes(), media_type="image/jpeg", alt=alt)
