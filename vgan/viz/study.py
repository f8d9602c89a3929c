"""The pages of a study: what raters see, the layout for Mechanical Turk, and the report. Each is one file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from vgan.study.ratings import PUBLISHED, Cell
from vgan.study.trials import QUESTION
from vgan.viz.report import page_environment

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Table:
    """Preferences by pair and category, of all raters or of some."""

    title: str
    about: str  # whose votes they are
    cells: tuple[Cell, ...]

    @property
    def rows(self) -> list[tuple[tuple[str, str], list[Cell]]]:
        """The cells of each pair, in order."""
        pairs = dict.fromkeys(cell.pair for cell in self.cells)
        return [(pair, [cell for cell in self.cells if cell.pair == pair]) for pair in pairs]


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """Everything the report shows."""

    title: str
    created: str
    votes: int
    raters: int
    tables: tuple[Table, ...]
    worth: tuple[tuple[str, str], ...]  # (what, value): agreement, power and the like
    lineage: tuple[tuple[str, str], ...] = ()

    @property
    def columns(self) -> list[str]:
        """Categories and the mean."""
        return list(dict.fromkeys(cell.category for cell in self.tables[0].cells))


def render_study_report(report: StudyReport) -> str:
    """The report as html text that fetches nothing; the published table stands beside the study's own."""
    environment = page_environment()
    environment.filters["whole"] = lambda share: f"{100 * share:.0f}"
    columns = [*next(iter(PUBLISHED.values()))]
    return environment.get_template("study.html").render(
        page=report, question=QUESTION, published=PUBLISHED, published_columns=columns
    )


def preference_text(cells: Sequence[Cell], first: str = "prefer X over Y") -> str:
    """The table as text of fixed width: percent, 95 % interval, votes; the paper's figure where it has one."""
    columns = list(dict.fromkeys(cell.category for cell in cells))
    rows = [[first, *columns]]
    for pair in dict.fromkeys(cell.pair for cell in cells):
        found = [_cell_text(cell) for cell in cells if cell.pair == pair]
        rows.append([f"{pair[0]} over {pair[1]}", *found])
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _cell_text(cell: Cell) -> str:
    if not cell.votes:
        return "-"
    paper = PUBLISHED.get(cell.pair, {}).get(cell.category)
    beside = "" if paper is None else f" [paper {paper:.0f}]"
    return f"{100 * cell.share:.0f} ({100 * cell.low:.0f}-{100 * cell.high:.0f}) n={cell.votes}{beside}"


def render_rating_page() -> tuple[str, str]:
    """The page that raters see, and the Content-Security-Policy that lets it run its own script and nothing else."""
    style, script = _read("style.css", "rating.css"), _read("pair.js", "rating.js")
    page = page_environment().get_template("rating.html").render(question=QUESTION, style=style, script=script)
    allowed = {
        "default-src": "'none'",
        "style-src": _hash(style),
        "script-src": _hash(script),
        "img-src": "data:",
        "media-src": "blob:",
        "connect-src": "'self'",
        **dict.fromkeys(("base-uri", "form-action", "frame-ancestors"), "'none'"),
    }
    return page, "; ".join(f"{what} {whom}" for what, whom in allowed.items())


def render_hit(per_hit: int) -> str:
    """The layout of a Mechanical Turk HIT of `per_hit` trials; ${clip_1} and so on are filled from the csv."""
    style, script = _read("style.css", "rating.css"), _read("pair.js")
    return (
        page_environment()
        .get_template("hit.html")
        .render(question=QUESTION, per_hit=per_hit, style=style, script=script)
    )


def _read(*names: str) -> Markup:
    """Files of this folder, to stand inside a page as they are."""
    return Markup("\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in names))  # noqa: S704 - our own


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
