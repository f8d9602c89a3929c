"""Run report as one self-contained HTML file: no network access, no script, no other file."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

if TYPE_CHECKING:
    from vgan.transfer.accuracy_curves import Point  # imports torch, which a page does not need

_MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".mp4": "video/mp4",
}


@dataclass(frozen=True, kw_only=True)
class Media:
    """An image or a silent looping video, embedded in the page."""

    data: bytes
    media_type: str  # image/* or video/*
    alt: str  # alternative text
    caption: str = ""

    @classmethod
    def from_file(cls, path: Path, *, alt: str, caption: str = "") -> Media:
        """Read a .png, .jpg, .gif, .webp or .mp4 file.

        Raises:
            ValueError: the suffix is none of these.
        """
        media_type = _MEDIA_TYPES.get(path.suffix.lower())
        if media_type is None:
            raise ValueError(f"{path.name} has none of the supported suffixes {', '.join(_MEDIA_TYPES)}")
        return cls(data=path.read_bytes(), media_type=media_type, alt=alt, caption=caption)

    @property
    def is_video(self) -> bool:
        """True for a video, false for an image."""
        return self.media_type.startswith("video/")

    @property
    def uri(self) -> str:
        """Data URI of the content."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode('ascii')}"


@dataclass(frozen=True, kw_only=True)
class StageSummary:
    """One row of the table of stages."""

    name: str
    status: str  # as reported by the job, e.g. SUCCEEDED
    seconds: float
    figures: tuple[tuple[str, str], ...] = ()  # key figures, (name, value)

    @property
    def tone(self) -> str:
        """CSS class of the status: good, bad or plain."""
        status = self.status.casefold()
        if status in ("succeeded", "finished", "done", "ok"):
            return "good"
        return "bad" if status in ("failed", "error", "stopped") else "plain"


@dataclass(frozen=True, kw_only=True)
class RejectCount:
    """Number of video segments rejected for one reason."""

    stage: str
    reason: str
    count: int


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """Content of the run report. The page omits sections without content."""

    title: str
    created: str  # date and version
    summary: str = ""  # one or two sentences at the top of the page
    stages: tuple[StageSummary, ...] = ()
    funnel: tuple[tuple[str, int], ...] = ()  # (name, count), largest first: sources, clips, ...
    rejects: tuple[RejectCount, ...] = ()
    stabilization: tuple[Media, ...] = ()  # contact sheets before and after
    samples: tuple[Media, ...] = ()  # grids of generated clips
    streams: tuple[Media, ...] = ()  # composite, foreground, mask, background
    accuracy_figure: Media | None = None
    accuracy: tuple[Point, ...] = ()
    protocol: str = ""
    chance: float = 0.0  # accuracy of guessing, in [0, 1]
    accuracy_note: str = ""  # remark on how to interpret the accuracies
    mlflow_command: str = ""
    lineage: tuple[tuple[str, str], ...] = ()  # (name, hash, version or URL)


def render_report(report: DemoReport) -> str:
    """Render the report as an HTML page. Strings are escaped; the page loads no external resource."""
    table = {init: {p.fraction: p for p in points} for init, points in groupby(report.accuracy, key=lambda p: p.init)}
    return (
        page_environment()
        .get_template("report.html")
        .render(
            report=report,
            table=table,
            fractions=sorted({fraction for cells in table.values() for fraction in cells}),
            total_s=sum(stage.seconds for stage in report.stages),
        )
    )


def page_environment() -> Environment:
    """Return the Jinja environment of all pages: autoescaping, strict undefined names, common filters."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration_text
    environment.filters["thousands"] = lambda count: f"{count:,}"
    environment.filters["percent"] = lambda share: f"{100 * share:.3g}\N{NO-BREAK SPACE}%"
    return environment


def duration_text(seconds: float) -> str:
    """Format seconds as a duration: 4.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 59.95:  # from 59.95 on, one decimal would show 60.0
        return f"{seconds:.1f} s"
    minutes, remainder = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {remainder:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
