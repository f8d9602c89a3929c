"""A model's card: what it draws, how that was measured and what it came from, as one html file."""

from __future__ import annotations

from dataclasses import dataclass

from vgan.viz.report import Media, page_environment


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number with all that it may be read by."""

    heading: str  # a word, for people
    name: str  # with its protocol
    about: str
    values: tuple[str, ...]  # one a set of clips, e.g. "2.85 (2.13 to 3.5)"


@dataclass(frozen=True, kw_only=True)
class CardModel:
    """What is shown of one model."""

    name: str
    about: str  # kind and size
    samples: Media
    streams: Media | None  # composite, foreground, mask, background
    neighbours: Media | None  # drawn clips above the training clips they are nearest to
    health: tuple[tuple[str, str], ...]  # (what, value) at the checkpoint
    warnings: tuple[str, ...]
    lineage: tuple[tuple[str, str], ...]
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Everything the page shows."""

    title: str
    created: str
    rows: tuple[str, ...]  # the sets of clips, each a column of the table: controls and models
    metrics: tuple[Metric, ...]
    notes: tuple[str, ...]
    protocol: tuple[tuple[str, str], ...]
    spectra: Media
    models: tuple[CardModel, ...]
    transfer: Media | None = None
    transfer_protocol: str = ""


def render_card(card: Card) -> str:
    """The page as html text. Every string is escaped; nothing is fetched from anywhere."""
    return page_environment().get_template("card.html").render(card=card)
