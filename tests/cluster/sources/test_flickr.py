"""Flickr crawls against a local server with Flickr's protocol: complete, without duplicates, resumable after errors."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.sources import flickr
from cluster.sources.config import FlickrConfig
from cluster.sources.flickr import CrawlResult, crawl, expand_terms
from cluster.sources.manifest import read_sources
from cluster.sources.response_cache import ResponseCache
from tests.cluster.flickr_server import KEY, Library, serving
from vgan.errors import InputError

FAST = 10_000_000  # calls per hour


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLICKR_API_KEY", KEY)
    monkeypatch.setattr("cluster.sources.flickr.BACKOFF_S", 0.01)


@pytest.fixture
def library() -> Library:
    return Library()


@pytest.fixture
def config(library: Library) -> Iterator[FlickrConfig]:
    with serving(library) as url:
        yield FlickrConfig(tags=["beach", "sea"], words=["golf"], url=url, calls_per_hour=FAST)


def run_crawl(config: FlickrConfig, folder: Path, licenses: tuple[str, ...] = ("any",), limit: int = 0) -> CrawlResult:
    return crawl(config, licenses, ResponseCache(str(folder / "journal")), limit)


def ids(result: CrawlResult) -> list[int]:
    return sorted(int(s.source_id.removeprefix("flickr/")) - 1000 for s in result.sources)


def test_crawl_finds_every_video_once_with_its_credits(config: FlickrConfig, library: Library, tmp_path: Path) -> None:
    result = run_crawl(config, tmp_path)
    assert ids(result) == list(range(30))
    source = next(s for s in result.sources if s.source_id == "flickr/1005")
    assert (source.license, source.author) == ("Attribution License", "Ann \u00e9 5")
    assert source.license_url == "https://creativecommons.org/licenses/by/2.0/"
    assert (source.page, source.tags) == ("https://www.flickr.com/photos/5@N00/1005", "beach,sea")
    assert source.uri == "https://v/1005/360.mp4"  # the smallest of at least 360; no web player, no local file
    assert all(request["media"] == "videos" for request in library.calls("search"))
    assert len(library.calls("getSizes")) == 30


def test_crawl_takes_the_largest_file_where_all_are_small(config: FlickrConfig, tmp_path: Path) -> None:
    result = run_crawl(replace(config, height=2000), tmp_path, limit=1)
    assert result.sources[0].uri.endswith("/720.mp4")


def test_crawl_requests_allowed_licenses_by_flickrs_present_ids(
    config: FlickrConfig, library: Library, tmp_path: Path
) -> None:
    result = run_crawl(config, tmp_path, ("by", "CC0", "by-sa-2.0"))
    assert {s.license for s in result.sources} == {
        "Attribution License",
        "Attribution-ShareAlike License",
        "Public Domain Dedication (CC0)",
    }
    assert {request["license"] for request in library.calls("search")} == {"4,5,9"}
    with pytest.raises(InputError, match="'by-nc' must be one of 'All Rights Reserved'"):
        run_crawl(config, tmp_path, ("by-nc",))


def test_crawl_bisects_time_until_a_search_returns_all_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (flickr.RESULTS, flickr.PER_PAGE) == (4000, 500)  # as documented; a tenth in this test
    monkeypatch.setattr("cluster.sources.flickr.RESULTS", 400)
    monkeypatch.setattr("cluster.sources.flickr.PER_PAGE", 50)
    monkeypatch.setattr(flickr.Flickr, "sizes", lambda _, video: {"files": [[360, f"https://v/{video}.mp4"]]})
    library = Library(num=950, per_day=10, results=400)
    with serving(library) as url:
        config = FlickrConfig(tags=["sea"], url=url, calls_per_hour=FAST, since="2010-01-01", until="2011-01-01")
        assert ids(run_crawl(config, tmp_path)) == list(range(950))
    assert len(library.calls("search")) < 40


def test_crawl_counts_results_beyond_the_limit_within_one_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.sources.flickr.RESULTS", 20)
    library = Library(num=30, per_day=30, results=20)
    with serving(library) as url:
        config = FlickrConfig(tags=["sea"], url=url, calls_per_hour=FAST, until="2011-01-01")
        result = run_crawl(config, tmp_path)
    assert len(result.sources) == 20
    assert result.left_out == {"beyond the limit of a search": 10}


def test_crawl_continues_after_a_burst_of_errors(
    config: FlickrConfig, library: Library, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = (105, "Service currently unavailable")
    library.faults = [None, 500, 503, away, "cut", 429, None, None, (10, "Sorry, the Flickr search API is away"), None]
    library.gone = (3,)
    with caplog.at_level(logging.DEBUG):
        result = run_crawl(config, tmp_path)
    assert ids(result) == [n for n in range(30) if n != 3]
    assert result.left_out == {"not found": 1}
    assert len(library.calls("search") + library.calls("getSizes")) == 3 + 30 + 6
    assert KEY not in caplog.text


def test_interrupted_crawl_repeats_no_request(config: FlickrConfig, library: Library, tmp_path: Path) -> None:
    library.faults = [None] * 12 + [(99, "of another kind")]
    with pytest.raises(InputError, match="of another kind"):
        run_crawl(config, tmp_path)
    result = run_crawl(config, tmp_path)
    assert ids(result) == list(range(30))
    requests = [sorted(request.items()) for request in library.calls("search") + library.calls("getSizes")]
    assert len(requests) == len({str(request) for request in requests}) + 1  # the failed one
    num_requests = len(library.asked)
    assert run_crawl(config, tmp_path) == result
    assert len(library.asked) == num_requests + 1  # the licenses


def test_crawl_keeps_the_key_out_of_urls_and_files(config: FlickrConfig, library: Library, tmp_path: Path) -> None:
    run_crawl(config, tmp_path)
    assert all(KEY not in path for path in library.queries)
    assert all(KEY.encode() not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_crawl_without_or_with_a_wrong_key_names_the_variable_and_not_the_key(
    config: FlickrConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLICKR_API_KEY", "wrong-key")
    with pytest.raises(InputError, match="FLICKR_API_KEY") as caught:
        run_crawl(config, tmp_path)
    assert "wrong-key" not in str(caught.value)
    monkeypatch.delenv("FLICKR_API_KEY")
    with pytest.raises(InputError, match="FLICKR_API_KEY is not set"):
        run_crawl(config, tmp_path)


def test_crawl_of_an_unavailable_service_ends_and_can_be_resumed(
    config: FlickrConfig, library: Library, tmp_path: Path
) -> None:
    library.faults = [None, None, *[503] * flickr.ATTEMPTS]
    with pytest.raises(InputError, match="failed 7 times, last with status 503"):
        run_crawl(config, tmp_path)
    assert ids(run_crawl(config, tmp_path)) == list(range(30))


def test_calls_are_spread_evenly_under_the_hourly_limit(config: FlickrConfig, tmp_path: Path) -> None:
    slow = replace(config, calls_per_hour=3600 * 50)  # 20 ms apart
    start = time.monotonic()
    run_crawl(slow, tmp_path, limit=20)
    assert time.monotonic() - start >= 0.02 * 21  # 22 calls
    with pytest.raises(ValueError, match=r"calls_per_hour must be in 1\.\.3600"):
        FlickrConfig(calls_per_hour=3601)


def test_acquire_killed_and_restarted_writes_the_complete_manifest(tmp_path: Path) -> None:
    library = Library(num=40)
    environment = {**os.environ, "FLICKR_API_KEY": KEY}
    out = tmp_path / "sources.parquet"
    with serving(library) as url:
        arguments = [
            "flickr.tags=[sea]",
            f"flickr.url={url}",
            f"flickr.calls_per_hour={FAST}",
            "licenses=any",
            f"out={out}",
        ]
        command = [sys.executable, "-m", "jobs.acquire", *arguments]
        library.die_after = 20
        killed = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while len(library.asked) <= 20 and time.monotonic() < deadline:
            time.sleep(0.05)
        killed.send_signal(signal.SIGKILL)
        output = b"".join(killed.communicate())
        assert not out.exists()
        library.die_after = 0
        resumed = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert [s.source_id for s in read_sources(str(out))] == [f"flickr/{1000 + n}" for n in range(40)]
    video_ids = [request["photo_id"] for request in library.calls("getSizes")]
    assert len(video_ids) == 41  # one request was interrupted by the kill
    assert KEY.encode() not in output + resumed.stdout + resumed.stderr


def test_terms_of_lists_replace_the_list_and_occur_once() -> None:
    lists = {"words.txt": ["beach", "", " train station ", "golf"]}
    assert expand_terms(["golf", "words.txt", "sea"], lists.__getitem__) == ["golf", "beach", "train station", "sea"]


def test_journal_of_many_parts_returns_every_response(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.sources.response_cache.LINES", 3)
    count = itertools.count()
    for _ in range(2):
        journal = ResponseCache(str(tmp_path))
        for key in "abcdefgh":
            assert journal.get_or_fetch(key, lambda: next(count)) == "abcdefgh".index(key)
    assert len(list(tmp_path.iterdir())) == 3
    (tmp_path / "part-000009.jsonl").write_text("half a li")
    with pytest.raises(InputError, match="is not a journal"):
        ResponseCache(str(tmp_path))
