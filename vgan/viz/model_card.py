"""A model card as one HTML file: samples, metrics, evaluation protocol and lineage."""

from __future__ import annotations

from dataclasses import dataclass

from vgan.viz.report import Media, page_environment


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One row of the metrics table, with its description and protocol."""

    heading: str  # short display name
    name: str  # metric name under which it is logged, protocol included
    about: str  # one-sentence description
    values: tuple[str, ...]  # one per set of clips, e.g. "2.85 (2.13 to 3.5)"


@dataclass(frozen=True, kw_only=True)
class CardModel:
    """The page section of one model."""

    name: str
    about: str  # model type and size
    samples: Media
    streams: Media | None  # composite, foreground, mask, background
    neighbours: Media | None  # generated clips above their nearest training clips
    health: tuple[tuple[str, str], ...]  # training diagnostics, (name, value), at the checkpoint's step
    warnings: tuple[str, ...]
    lineage: tuple[tuple[str, str], ...]  # (name, hash, version or URL)
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Content of the model card page."""

    title: str
    created: str  # date and version
    rows: tuple[str, ...]  # names of the sets of clips (controls and models), one column of the metrics table each
    metrics: tuple[Metric, ...]
    notes: tuple[str, ...]
    protocol: tuple[tuple[str, str], ...]
    spectra: Media
    models: tuple[CardModel, ...]
    transfer: Media | None = None
    transfer_protocol: str = ""


def render_card(card: Card) -> str:
    """Render the card as an HTML page. Strings are escaped; the page loads no external resource."""
    return page_environment().get_template("card.html").render(card=card)
