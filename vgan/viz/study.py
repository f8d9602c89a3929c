"""HTML pages of a preference study, one file each: rating page, Mechanical Turk layout and report."""

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

_FOLDER = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Table of preferences by pair of methods and category."""

    title: str
    about: str  # description of the raters included
    cells: tuple[Cell, ...]

    @property
    def rows(self) -> list[tuple[tuple[str, str], list[Cell]]]:
        """Pairs in order, each with its cells."""
        pairs = dict.fromkeys(cell.pair for cell in self.cells)
        return [(pair, [cell for cell in self.cells if cell.pair == pair]) for pair in pairs]


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """Content of the study report."""

    title: str
    created: str  # date and time
    votes: int  # number of votes
    raters: int  # number of raters
    tables: tuple[Table, ...]
    worth: tuple[tuple[str, str], ...]  # (name, value): agreement, statistical power and similar
    lineage: tuple[tuple[str, str], ...] = ()  # (name, hash, version or URL)

    @property
    def columns(self) -> list[str]:
        """Column headings: the categories and the mean."""
        return list(dict.fromkeys(cell.category for cell in self.tables[0].cells))


def render_study_report(report: StudyReport) -> str:
    """Render the report as a self-contained HTML page with the published table below the measured ones."""
    environment = page_environment()
    environment.filters["integer_percent"] = lambda share: f"{100 * share:.0f}"
    columns = [*next(iter(PUBLISHED.values()))]
    return environment.get_template("study.html").render(
        page=report, question=QUESTION, published=PUBLISHED, published_columns=columns
    )


def preference_text(cells: Sequence[Cell], first: str = "prefer X over Y") -> str:
    """Format the table as fixed-width text: percent, 95 % interval, number of votes and the published percentage.

    Args:
        cells: of one table.
        first: heading of the first column.
    """
    columns = list(dict.fromkeys(cell.category for cell in cells))
    rows = [[first, *columns]]
    for pair in dict.fromkeys(cell.pair for cell in cells):
        texts = [_cell_text(cell) for cell in cells if cell.pair == pair]
        rows.append([f"{pair[0]} over {pair[1]}", *texts])
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _cell_text(cell: Cell) -> str:
    """Format a cell as percent, interval, votes and the published percentage if there is one; "-" without votes."""
    if not cell.votes:
        return "-"
    published = PUBLISHED.get(cell.pair, {}).get(cell.category)
    suffix = "" if published is None else f" [paper {published:.0f}]"
    return f"{100 * cell.share:.0f} ({100 * cell.low:.0f}-{100 * cell.high:.0f}) n={cell.votes}{suffix}"


def render_rating_page() -> tuple[str, str]:
    """Render the rating page; return it with a Content-Security-Policy that allows only its own style and script."""
    style, script = _read("style.css", "rating.css"), _read("pair.js", "rating.js")
    page = page_environment().get_template("rating.html").render(question=QUESTION, style=style, script=script)
    sources = {
        "default-src": "'none'",
        "style-src": _hash(style),
        "script-src": _hash(script),
        "img-src": "data:",
        "media-src": "blob:",
        "connect-src": "'self'",
        **dict.fromkeys(("base-uri", "form-action", "frame-ancestors"), "'none'"),
    }
    return page, "; ".join(f"{directive} {source}" for directive, source in sources.items())


def render_hit(per_hit: int) -> str:
    """Render the layout of a Mechanical Turk HIT of `per_hit` trials; the batch CSV fills ${clip_1}, ${clip_2}, ..."""
    style, script = _read("style.css", "rating.css"), _read("pair.js")
    return (
        page_environment()
        .get_template("hit.html")
        .render(question=QUESTION, per_hit=per_hit, style=style, script=script)
    )


def _read(*names: str) -> Markup:
    """Read files of this folder as markup that is inserted into a page without escaping."""
    return Markup("\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in names))  # noqa: S704 - packaged files


def _hash(text: str) -> str:
    """Return the Content-Security-Policy source expression that allows an inline text by its SHA-256."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
