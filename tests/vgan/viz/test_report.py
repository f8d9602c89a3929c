"""The report is a self-contained page with all results, and escapes its texts."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from vgan.transfer.accuracy_curves import Point
from vgan.viz.report import DemoReport, Media, RejectCount, StageSummary, duration_text, render_report

HOSTILE = "<script>alert('x')</script>\" onload=\"y"


class Page(HTMLParser):
    """Parser that collects tags with their attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def picture(alt: str) -> Media:
    return Media(data=b"\x89PNG" + alt.encode(), media_type="image/png", alt=alt, caption=f"caption of {alt}")


@pytest.fixture
def report() -> DemoReport:
    return DemoReport(
        title="Demo",
        created="today",
        stages=(StageSummary(name="prepare", status="SUCCEEDED", seconds=185.2, figures=(("clips", "412"),)),),
        funnel=(("videos", 1200), ("clips", 412)),
        rejects=(RejectCount(stage="stabilize", reason="few_matches", count=21),),
        stabilization=(picture("sheet"),),
        samples=(Media(data=b"mp4 bytes", media_type="video/mp4", alt="samples"),),
        streams=(picture("streams"),),
        accuracy_figure=picture("curve"),
        accuracy=(
            Point(init="vgan", fraction=0.125, mean=0.3, low=0.25, high=0.35, seeds=(0.28, 0.32)),
            Point(init="random", fraction=1.0, mean=0.5, low=0.4, high=0.6, seeds=(0.5,)),
        ),
        protocol="ucf101-split1_1clip",
        chance=0.2,
        mlflow_command="mlflow ui --backend-store-uri sqlite:///x.db",
        lineage=(("dataset", "abc123"), ("checkpoint", "file:///ckpt")),
    )


def test_report_contains_every_result(report: DemoReport) -> None:
    text = " ".join(Page(render_report(report)).text.split())
    for expected in (
        "3 min 05 s", "SUCCEEDED", "1,200", "few_matches", "caption of sheet", "ucf101-split1_1clip", "chance is 20 %",
        "30.0", "25.0 to 35.0, 2 seeds", "1 seed", "mlflow ui --backend-store-uri", "abc123", "file:///ckpt",
    ):  # fmt: skip
        assert expected in text


def test_report_embeds_media_with_alt_texts(report: DemoReport) -> None:
    page = Page(render_report(report))
    assert [image["alt"] for image in page.named("img")] == ["sheet", "streams", "curve"]
    (video,) = page.named("video")
    assert video["aria-label"] == "samples"
    assert base64.b64decode((video["src"] or "").removeprefix("data:video/mp4;base64,")) == b"mp4 bytes"


def test_report_is_self_contained(report: DemoReport) -> None:
    html = render_report(report)
    page = Page(html)
    sources = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert sources
    assert all((source or "").startswith("data:") for source in sources)
    assert not page.named("script")
    assert not page.named("link")
    assert not re.search(r"https?:|url\(|@import", html)


def test_report_escapes_hostile_text_everywhere() -> None:
    hostile = render_report(
        DemoReport(
            title=HOSTILE,
            created=HOSTILE,
            summary=HOSTILE,
            stages=(StageSummary(name=HOSTILE, status=HOSTILE, seconds=1, figures=((HOSTILE, HOSTILE),)),),
            funnel=((HOSTILE, 1),),
            rejects=(RejectCount(stage=HOSTILE, reason=HOSTILE, count=1),),
            samples=(Media(data=b"x", media_type="image/png", alt=HOSTILE, caption=HOSTILE),),
            accuracy=(Point(init=HOSTILE, fraction=1.0, mean=0.1, low=0.1, high=0.1, seeds=(0.1,)),),
            protocol=HOSTILE,
            mlflow_command=HOSTILE,
            lineage=((HOSTILE, HOSTILE),),
        )
    )
    page = Page(hostile)
    assert not page.named("script")
    assert not [attributes for _, attributes in page.tags if "onload" in attributes]
    assert page.named("img")[0]["alt"] == HOSTILE
    assert page.text.count(HOSTILE) >= 12


def test_report_omits_empty_sections() -> None:
    failed = StageSummary(name="prepare", status="FAILED", seconds=2)
    page = Page(render_report(DemoReport(title="Demo", created="today", stages=(failed,))))
    assert len(page.named("section")) == 1
    assert "bad" in (page.named("span")[0]["class"] or "")


def test_media_from_file_detects_type_and_rejects_others(tmp_path: Path) -> None:
    (tmp_path / "a.GIF").write_bytes(b"gif")
    media = Media.from_file(tmp_path / "a.GIF", alt="a")
    assert (media.media_type, media.is_video) == ("image/gif", False)
    with pytest.raises(ValueError, match=r"notes\.txt"):
        Media.from_file(tmp_path / "notes.txt", alt="")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.97, "1 min 00 s"), (3599.6, "1 h 00 min"), (7800, "2 h 10 min")],
)
def test_duration_text(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
