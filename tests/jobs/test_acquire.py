"""Command lines of `jobs.acquire`, for each origin that needs no network, and of `jobs.plan`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.planning.config import PlanConfig
from cluster.sources.config import AcquireConfig
from cluster.sources.manifest import Source, read_sources
from jobs import acquire, cli, plan

BY = "https://creativecommons.org/licenses/by/4.0/"


def run(*arguments: str) -> int:
    return cli.run(acquire.main, AcquireConfig, acquire.ABOUT, arguments)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for name in ("a/1.mp4", "a/2.mov", "b/1.mp4", "b/deep/3.mp4", "b/notes.txt"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "videos"


def listed(out: Path) -> list[str]:
    return [s.source_id for s in read_sources(str(out))]


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("*/1.mp4", ["a/1.mp4", "b/1.mp4"]),
        ("b/*.mp4", ["1.mp4", "deep/3.mp4"]),
        ("*.mov", ["a/2.mov"]),
        ("", ["a/1.mp4", "a/2.mov", "b/1.mp4", "b/deep/3.mp4"]),
    ],
)
def test_acquire_of_a_folder_or_a_glob(videos: Path, tmp_path: Path, glob: str, names: list[str]) -> None:
    for prefix in ("", "file://"):
        assert run(f"folder={prefix}{videos}/{glob}", f"out={tmp_path}/s.parquet") == 0
        assert listed(tmp_path / "s.parquet") == names


def test_acquire_of_urls_filters_by_license_and_deletion_list_and_removes_duplicates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        f"https://h/1.mp4,Attribution,{BY},Ann,https://p/1",
        f"https://h/1.mp4,Attribution,{BY},Ann,https://p/1",
        f"https://h/2.mp4,Attribution,{BY},Bob,https://p/2",
        "https://h/3.mp4,All Rights Reserved,,Cy,https://p/3",
        "https://h/4.mp4,,,,",
    ]
    (tmp_path / "list.csv").write_text("\n".join(["uri,license,license_url,author,page", *rows]) + "\n")
    (tmp_path / "deleted.txt").write_text("https://p/2\n\n")
    arguments = [f"urls={tmp_path}/list.csv", f"exclude={tmp_path}/deleted.txt", f"out={tmp_path}/s.parquet"]
    assert run(*arguments, "licenses=[by-4.0]") == 0
    first = "https://h/1.mp4"
    credit = {"license": "Attribution", "license_url": BY, "author": "Ann", "page": "https://p/1"}
    assert read_sources(f"{tmp_path}/s.parquet") == [Source(uri=first, source_id=first, **credit)]
    output = capsys.readouterr().out
    assert "2 excluded: license not in licenses=" in output
    assert "1 excluded: on the deletion list" in output
    assert "1 excluded: duplicate by URL or content" in output


def test_acquire_of_a_tinyvideo_list_refuses_paths_outside_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "golf.txt").write_text("golf/a/0001.jpg\ngolf/b/0001.jpg 3\n")
    assert run(f"tinyvideo={tmp_path}/golf.txt", "root=s3://b/frames", f"out={tmp_path}/s.parquet") == 0
    assert [s.uri for s in read_sources(f"{tmp_path}/s.parquet")] == [
        f"s3://b/frames/golf/{name}/0001.jpg" for name in "ab"
    ]
    for name in ("../../etc/x.jpg", "/etc/x.jpg", "file:///etc/x.jpg"):
        (tmp_path / "golf.txt").write_text(f"golf/a/0001.jpg\n{name}\n")
        assert run(f"tinyvideo={tmp_path}/golf.txt", f"out={tmp_path}/t.parquet") == cli.BAD_INPUT
        assert f"{name!r} lies outside" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "got none"),
        (["folder=/x", "urls=/y.txt"], "got folder= and urls="),
        (["flickr.tags=[sea]"], "licenses= is required"),
        (["yfcc.metadata=/x"], "licenses= is required"),
        (["flickr.since=yesterday"], "flickr.since must be a day like"),
        (["flickr.calls_per_hour=4000"], "flickr.calls_per_hour must be in 1..3600"),
        (["flickr.words=/none/words.txt", "licenses=any"], "no list at '/none/words.txt'"),
        (["flickr.tags=[sea]", "licenses=any"], "FLICKR_API_KEY is not set"),
    ],
)
def test_acquire_refuses_invalid_settings(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.delenv("FLICKR_API_KEY", raising=False)
    assert run(*arguments, f"out={tmp_path}/s.parquet") == cli.BAD_INPUT
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_plan_prints_a_table_and_writes_json_and_a_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["hours=5000", "cpu.count=4", "cpu.price=1", "steps=1000", f"out={tmp_path}/plan"]
    assert cli.run(plan.main, PlanConfig, plan.ABOUT, arguments) == 0
    assert "bottleneck: stabilize" in capsys.readouterr().out
    cost_plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert round(cost_plan["clip_hours"]) == 5000
    assert cost_plan["settings"]["cpu"]["count"] == 4
    assert (tmp_path / "plan" / "plan.png").read_bytes().startswith(b"\x89PNG")
