"""The report of a whole run as one html file that needs nothing else: no network, no script, no second file."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

if TYPE_CHECKING:
    from vgan.transfer.curves import Point  # with torch, which a page does not need

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
    """A picture or a silent looping video, carried inside the page."""

    data: bytes
    media_type: str  # image/* or video/*
    alt: str  # what it shows, for who cannot see it
    caption: str = ""

    @classmethod
    def from_file(cls, path: Path, *, alt: str, caption: str = "") -> Media:
        """Read a .png, .jpg, .gif, .webp or .mp4 file.

        Raises:
            ValueError: another kind of file.
        """
        media_type = _MEDIA_TYPES.get(path.suffix.lower())
        if media_type is None:
            raise ValueError(f"{path.name} is none of {', '.join(_MEDIA_TYPES)}")
        return cls(data=path.read_bytes(), media_type=media_type, alt=alt, caption=caption)

    @property
    def is_video(self) -> bool:
        return self.media_type.startswith("video/")

    @property
    def uri(self) -> str:
        """The file as a data: URI."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode('ascii')}"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One line of the summary."""

    name: str
    status: str  # as the job reports it, e.g. SUCCEEDED
    seconds: float
    figures: tuple[tuple[str, str], ...] = ()  # (what, value) that matter most

    @property
    def tone(self) -> str:
        """good, bad or plain: how the status is coloured."""
        word = self.status.casefold()
        if word in ("succeeded", "finished", "done", "ok"):
            return "good"
        return "bad" if word in ("failed", "error", "stopped") else "plain"


@dataclass(frozen=True, kw_only=True)
class RejectCount:
    """How many stretches of video one reason turned away."""

    stage: str
    reason: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything the page shows. A section without content is left out."""

    title: str
    created: str  # when, and by which version
    summary: str = ""  # one or two sentences above everything
    stages: tuple[Stage, ...] = ()
    funnel: tuple[tuple[str, int], ...] = ()  # (what, count), widest first: sources, clips, ...
    rejects: tuple[RejectCount, ...] = ()
    stabilization: tuple[Media, ...] = ()  # contact sheets before and after
    samples: tuple[Media, ...] = ()  # grids of generated clips
    streams: tuple[Media, ...] = ()  # composite, foreground, mask, background
    accuracy_figure: Media | None = None
    accuracy: tuple[Point, ...] = ()
    protocol: str = ""
    chance: float = 0.0  # share in [0, 1]
    accuracy_note: str = ""  # how the numbers may be read
    mlflow_command: str = ""
    lineage: tuple[tuple[str, str], ...] = ()  # (what, hash or url)


def render_report(report: Report) -> str:
    """The page as html text. Every string is escaped; nothing is fetched from anywhere."""
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
    """How every page of the project is made: escaped, strict, with the same filters and style."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
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
    """Seconds as a person says them: 4.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 59.95:  # else it would round to 60.0
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
