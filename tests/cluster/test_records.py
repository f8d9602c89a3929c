"""Commit records moved together are the same records: none is lost, doubled or changed, wherever a move is cut off."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster import records, storage
from cluster.judging import candidates, choose, columns_for
from cluster.records import compact, forget, tables
from cluster.sources import Source, Sources
from cluster.units import Ledger, Unit, commit_url, queue_again, read_records, video_name
from vgan.config import ClipSpec, GateConfig, VideoConfig
from vgan.errors import BadInput
from vgan.records import Evidence

VIDEO = VideoConfig(clip=ClipSpec(num_frames=16, size=32), gates=GateConfig(off=["near_duplicate"]))
SOURCES = [Source(uri=f"/v/{n}.mp4", source_id=f"{n}.mp4", label="2026-11-29") for n in range(12)]
VIDEOS = {video_name(s, "settings"): s for s in SOURCES}


def record(unit: Unit, segments: int, num_clips: int) -> dict:
    scores = {key: [value] * num_clips for key, value in asdict(Evidence(motion=3.0, fingerprint="0" * 32)).items()}
    scores["residual_px"] = [50.0, 0.1 + 0.2, *[1e-7] * num_clips][:num_clips]
    lineage = {"source_id": [unit.source.source_id] * num_clips, "source_uri": [unit.source.uri] * num_clips}
    clips = {"clip_id": [f"{unit.name}-{n}" for n in range(num_clips)], "start_s": [1.28 * n for n in range(num_clips)]}
    clips |= {"shot": [0] * num_clips, "label": [None] * num_clips, "split": [None] * num_clips, **lineage, **scores}
    clips |= {"decoder": ["pyav"] * num_clips, "crc32": [2**32 - 1] * num_clips, "scene": ["beach"] * num_clips}
    clips |= {"scene_score": [0.5] * num_clips}
    whole = {"start_s": None, "stage": "decode", "reason": "corrupt", "detail": "at 3 s"}
    return {
        "video": unit.video,
        "segment": unit.segment,
        "segments": segments,
        "settings": "settings",
        "source": asdict(unit.source),
        "probe": None,
        "decoder": "pyav",
        "source_s": 3.6,
        "rejects": [] if num_clips else [whole],
        "quarantined": not num_clips,
        "version": "1.0",
        "seconds": 0.123,
        "data": f"work/units/{unit.name}.frames" if num_clips else None,
        "clips": clips if num_clips else {},
    }


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with 13 records, of a video in two segments and of one without clips among others; few are many here."""
    monkeypatch.setattr(records, "MOST_LOOSE", 4)
    monkeypatch.setattr(records, "BLOCK", 5)
    for n, (video, source) in enumerate(VIDEOS.items()):
        for segment in range(2 if n == 1 else 1):
            unit = Unit(video, source, segment=segment)
            value = record(unit, 2 if n == 1 else 1, n % 4)
            storage.write_new(commit_url(str(tmp_path), unit, value["segments"]), storage.json_bytes(value))
    return str(tmp_path)


def all_records(out: str) -> list[dict]:
    return read_records(Ledger.read(out).commit_urls(VIDEOS))


def loose(out: str) -> list[str]:
    return storage.list_names(storage.join(out, "work", "commits"))


def test_compact_moves_every_record_and_changes_none(out: str) -> None:
    before, names = all_records(out), loose(out)
    assert (len(names), len(before)) == (13, 13)
    compact(out)
    assert loose(out) == []
    assert len(storage.list_names(storage.join(out, "work", "records"))) == 3
    assert all_records(out) == before
    assert len(Ledger.read(out).open_units(VIDEOS)) == 0


def test_compact_leaves_few_records_where_they_are(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_LOOSE", 13)
    names = loose(out)
    compact(out)
    assert loose(out) == names


@pytest.mark.parametrize("removed", [0, 3])
def test_compact_killed_before_it_removed_all_counts_every_record_once_and_is_finished_later(
    out: str, monkeypatch: pytest.MonkeyPatch, removed: int
) -> None:
    before = all_records(out)

    def killed(url: str, names: list[str]) -> None:
        real(url, names[:removed])
        if names:
            raise KeyboardInterrupt

    real = storage.remove_files
    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove_files", killed)
        with pytest.raises(KeyboardInterrupt):
            compact(out)
    assert len(loose(out)) == 13 - removed
    assert Ledger.read(out).units.num_rows == 13
    assert all_records(out) == before
    compact(out)
    assert loose(out) == []
    assert (Ledger.read(out).units.num_rows, all_records(out)) == (13, before)


def test_segment_that_a_second_try_could_not_read_leaves_the_record_of_the_first(out: str) -> None:
    """Its worker died after the commit; the try that followed found no video, and so no segments."""
    video, source = list(VIDEOS.items())[1]  # of two segments
    failed = record(Unit(video, source), 1, 0)
    storage.write_new(commit_url(out, Unit(video, source), 1), storage.json_bytes(failed))
    before = all_records(out)
    assert len(before) == 13
    assert [r["segments"] for r in before if r["video"] == video] == [2, 2]
    compact(out)
    assert all_records(out) == before
    assert loose(out) == [f"{video}.g0.0of1.json"]


def test_records_in_both_places_are_read_as_they_were(out: str) -> None:
    before = all_records(out)
    late = loose(out)[7:]
    for name in late:
        (Path(out) / "work/commits" / name).rename(Path(out) / name)
    compact(out)
    for name in late:
        (Path(out) / name).rename(Path(out) / "work/commits" / name)
    pieces = pa.concat_tables(tables(Ledger.read(out), VIDEOS), promote_options="permissive").sort_by("place")
    assert pieces["data"].to_pylist() == [r["data"] for r in before]
    assert all_records(out) == before


def test_records_that_are_moved_while_they_are_read_say_so(out: str) -> None:
    ledger = Ledger.read(out)
    compact(out)
    with pytest.raises(BadInput, match="run this again"):
        list(tables(ledger))
    with pytest.raises(BadInput, match="run this again"):
        read_records(ledger.commit_urls(VIDEOS))


def test_compacted_record_of_a_video_queued_again_counts_no_more(out: str) -> None:
    compact(out)
    first = next(iter(VIDEOS))
    queue_again(out, Ledger.read(out), [first])
    ledger = Ledger.read(out)
    assert ledger.open_units(VIDEOS) == [Unit(first, VIDEOS[first], generation=1)]
    assert first not in {r["video"] for r in read_records(ledger.commit_urls(VIDEOS))}


def test_forget_removes_a_video_from_both_places_and_no_other(out: str) -> None:
    gone = list(VIDEOS)[1:3]
    kept = [r for r in all_records(out) if r["video"] not in gone]
    forget(out, gone[:1])
    compact(out)
    forget(out, gone[1:])
    assert all_records(out) == kept
    assert len(Ledger.read(out).open_units(VIDEOS)) == 2


def test_choose_is_the_same_before_and_after_records_are_moved(out: str) -> None:
    def chosen() -> list:
        pieces = tables(Ledger.read(out), VIDEOS, columns_for(VIDEO))
        found = choose(pieces, Sources.of(SOURCES), VIDEO)
        return [found.accepted.to_pylist(), found.rejects.to_pylist(), found.counts]

    before = chosen()
    assert (before[2]["clips"], before[2]["rejected"], before[2]["quarantined"]) == (9, 6, 3)
    compact(out)
    assert chosen() == before


def test_candidates_of_columns_are_those_of_the_records_themselves(out: str) -> None:
    pieces = pa.concat_tables(tables(Ledger.read(out), VIDEOS), promote_options="permissive").sort_by("place")
    found = candidates(pieces, SOURCES, VIDEO)
    rows = [
        {name: values[n] for name, values in r["clips"].items()} | {"data": r["data"], "row": n}
        for r in all_records(out)
        for n in range(len(r["clips"].get("clip_id", ())))
    ]
    assert found.num_rows == len(rows) == 19
    told = [{name: row[name] for name in found.column_names if name != "label"} for row in rows]
    assert found.drop_columns(["label"]).to_pylist() == told
    assert set(found["label"].to_pylist()) == {"2026-11-29"}  # of the sources, and text though it looks like a date


def test_ledger_of_thousands_tells_what_a_look_at_each_video_tells(tmp_path: Path) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "work" / "commits"
    folder.mkdir(parents=True)
    sources = [Source(uri=f"/{n}", source_id=str(n)) for n in range(3000)]
    videos = {video_name(s, ""): s for s in sources}
    wanted = []
    for video, source in videos.items():
        segments = int(rng.integers(1, 4))
        there = [s for s in range(segments) if rng.random() < 0.7]
        for s in there:
            (folder / f"{video}.g0.{s}of{segments}.json").touch()
        missing = sorted(set(range(segments)) - set(there))
        wanted += [Unit(video, source, 0, s, segments) for s in missing] if there else [Unit(video, source)]
    assert Ledger.read(str(tmp_path)).open_units(videos) == wanted
