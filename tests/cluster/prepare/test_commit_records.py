"""Compaction of commit records: none is lost, duplicated or changed, wherever it is interrupted."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster.prepare.commit_records import compact_records, iter_record_tables, remove_records
from cluster.prepare.ledger import Ledger, read_records, requeue_videos
from cluster.prepare.selection import candidate_table, required_columns, select_clips
from cluster.prepare.work_units import VideoTable, WorkUnit, commit_url
from cluster.sources.manifest import Source, Sources
from cluster.storage.conditional_write import put_if_absent
from cluster.storage.files import json_bytes, list_names, remove_files
from cluster.storage.urls import join_url
from vgan.errors import InputError
from vgan.records import ClipScores
from vgan.video.config import ClipSpec, FilterConfig, VideoConfig

VIDEO = VideoConfig(clip=ClipSpec(num_frames=16, size=32), filters=FilterConfig(disabled=["near_duplicate"]))
SOURCES = [Source(uri=f"/v/{n}.mp4", source_id=f"{n}.mp4", label="2026-11-29") for n in range(12)]
VIDEOS = dict(VideoTable.named(Sources.of(SOURCES), "settings"))


def record(unit: WorkUnit, segments: int, num_clips: int) -> dict:
    scores = {key: [value] * num_clips for key, value in asdict(ClipScores(motion=3.0, fingerprint="0" * 32)).items()}
    scores["residual_px"] = [50.0, 0.1 + 0.2, *[1e-7] * num_clips][:num_clips]
    lineage = {"source_id": [unit.source.source_id] * num_clips, "source_uri": [unit.source.uri] * num_clips}
    clips = {"clip_id": [f"{unit.name}-{n}" for n in range(num_clips)], "start_s": [1.28 * n for n in range(num_clips)]}
    clips |= {"shot": [0] * num_clips, "label": [None] * num_clips, "split": [None] * num_clips, **lineage, **scores}
    clips |= {"decoder": ["pyav"] * num_clips, "crc32": [2**32 - 1] * num_clips, "scene": ["beach"] * num_clips}
    clips |= {"scene_score": [0.5] * num_clips}
    reject = {"start_s": None, "stage": "decode", "reason": "corrupt", "detail": "at 3 s"}
    return {
        "video": unit.video,
        "segment": unit.segment,
        "segments": segments,
        "settings": "settings",
        "source": asdict(unit.source),
        "probe": None,
        "decoder": "pyav",
        "source_s": 3.6,
        "rejects": [] if num_clips else [reject],
        "quarantined": not num_clips,
        "version": "1.0",
        "seconds": 0.123,
        "data": f"work/units/{unit.name}.frames" if num_clips else None,
        "clips": clips if num_clips else {},
    }


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Folder with 13 records, among them a video of two segments and videos without clips; limits are lowered."""
    monkeypatch.setattr("cluster.prepare.commit_records.MOST_LOOSE", 4)
    monkeypatch.setattr("cluster.prepare.commit_records.BLOCK", 5)
    for n, (video, source) in enumerate(VIDEOS.items()):
        for segment in range(2 if n == 1 else 1):
            unit = WorkUnit(video, source, segment=segment)
            value = record(unit, 2 if n == 1 else 1, n % 4)
            put_if_absent(commit_url(str(tmp_path), unit, value["segments"]), json_bytes(value))
    return str(tmp_path)


def all_records(out: str) -> list[dict]:
    return read_records(Ledger.read(out).commit_urls(VIDEOS))


def individual(out: str) -> list[str]:
    return list_names(join_url(out, "work", "commits"))


def test_compact_moves_every_record_and_changes_none(out: str) -> None:
    before, names = all_records(out), individual(out)
    assert (len(names), len(before)) == (13, 13)
    compact_records(out)
    assert individual(out) == []
    assert len(list_names(join_url(out, "work", "records"))) == 3
    assert all_records(out) == before
    assert len(Ledger.read(out).pending_units(VIDEOS)) == 0


def test_compact_does_not_move_few_records(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.prepare.commit_records.MOST_LOOSE", 13)
    names = individual(out)
    compact_records(out)
    assert individual(out) == names


@pytest.mark.parametrize("removed", [0, 3])
def test_compact_killed_before_removal_counts_every_record_once_and_resumes(
    out: str, monkeypatch: pytest.MonkeyPatch, removed: int
) -> None:
    before = all_records(out)

    def killed(url: str, names: list[str]) -> None:
        real(url, names[:removed])
        if names:
            raise KeyboardInterrupt

    real = remove_files
    with monkeypatch.context() as patch:
        patch.setattr("cluster.prepare.commit_records.remove_files", killed)
        with pytest.raises(KeyboardInterrupt):
            compact_records(out)
    assert len(individual(out)) == 13 - removed
    assert Ledger.read(out).units.num_rows == 13
    assert all_records(out) == before
    compact_records(out)
    assert individual(out) == []
    assert (Ledger.read(out).units.num_rows, all_records(out)) == (13, before)


def test_retry_that_cannot_read_the_video_keeps_the_first_record(out: str) -> None:
    """Check a retry after the worker died past its commit: it cannot read the video and records one segment."""
    video, source = list(VIDEOS.items())[1]  # of two segments
    failed = record(WorkUnit(video, source), 1, 0)
    put_if_absent(commit_url(out, WorkUnit(video, source), 1), json_bytes(failed))
    before = all_records(out)
    assert len(before) == 13
    assert [r["segments"] for r in before if r["video"] == video] == [2, 2]
    compact_records(out)
    assert all_records(out) == before
    assert individual(out) == [f"{video}.g0.0of1.json"]


def test_compacted_and_individual_records_are_read_together(out: str) -> None:
    before = all_records(out)
    late = individual(out)[7:]
    for name in late:
        (Path(out) / "work/commits" / name).rename(Path(out) / name)
    compact_records(out)
    for name in late:
        (Path(out) / name).rename(Path(out) / "work/commits" / name)
    pieces = pa.concat_tables(iter_record_tables(Ledger.read(out), VIDEOS), promote_options="permissive").sort_by(
        "place"
    )
    assert pieces["data"].to_pylist() == [r["data"] for r in before]
    assert all_records(out) == before


def test_records_moved_during_reading_raise(out: str) -> None:
    ledger = Ledger.read(out)
    compact_records(out)
    with pytest.raises(InputError, match="run this again"):
        list(iter_record_tables(ledger))
    with pytest.raises(InputError, match="run this again"):
        read_records(ledger.commit_urls(VIDEOS))


def test_compacted_record_of_a_requeued_video_is_ignored(out: str) -> None:
    compact_records(out)
    first = next(iter(VIDEOS))
    requeue_videos(out, Ledger.read(out), [first])
    ledger = Ledger.read(out)
    assert ledger.pending_units(VIDEOS) == [WorkUnit(first, VIDEOS[first], generation=1)]
    assert first not in {r["video"] for r in read_records(ledger.commit_urls(VIDEOS))}


def test_forget_removes_compacted_and_individual_records_of_a_video(out: str) -> None:
    removed = list(VIDEOS)[1:3]
    remaining = [r for r in all_records(out) if r["video"] not in removed]
    remove_records(out, removed[:1])
    compact_records(out)
    remove_records(out, removed[1:])
    assert all_records(out) == remaining
    assert len(Ledger.read(out).pending_units(VIDEOS)) == 2


def test_choose_is_the_same_before_and_after_compaction(out: str) -> None:
    def chosen() -> list:
        pieces = iter_record_tables(Ledger.read(out), VIDEOS, required_columns(VIDEO))
        selection = select_clips(pieces, Sources.of(SOURCES), VIDEO)
        return [selection.accepted.to_pylist(), selection.rejects.to_pylist(), selection.counts]

    before = chosen()
    assert (before[2]["clips"], before[2]["rejected"], before[2]["quarantined"]) == (9, 6, 3)
    compact_records(out)
    assert chosen() == before


def test_candidates_match_the_records(out: str) -> None:
    pieces = pa.concat_tables(iter_record_tables(Ledger.read(out), VIDEOS), promote_options="permissive").sort_by(
        "place"
    )
    table = candidate_table(pieces, SOURCES, VIDEO)
    rows = [
        {name: values[n] for name, values in r["clips"].items()} | {"data": r["data"], "row": n}
        for r in all_records(out)
        for n in range(len(r["clips"].get("clip_id", ())))
    ]
    assert table.num_rows == len(rows) == 19
    expected = [{name: row[name] for name in table.column_names if name != "label"} for row in rows]
    assert table.drop_columns(["label"]).to_pylist() == expected
    assert set(table["label"].to_pylist()) == {
        "2026-11-29"
    }  # labels of sources stay text even if they look like a date


def test_open_units_of_thousands_of_videos(tmp_path: Path) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "work" / "commits"
    folder.mkdir(parents=True)
    sources = [Source(uri=f"/{n}", source_id=str(n)) for n in range(3000)]
    videos = dict(VideoTable.named(Sources.of(sources), ""))
    expected = []
    for video, source in videos.items():
        segments = int(rng.integers(1, 4))
        committed = [s for s in range(segments) if rng.random() < 0.7]
        for s in committed:
            (folder / f"{video}.g0.{s}of{segments}.json").touch()
        missing = sorted(set(range(segments)) - set(committed))
        expected += (
            [WorkUnit(video, source, 0, s, segments) for s in missing] if committed else [WorkUnit(video, source)]
        )
    assert Ledger.read(str(tmp_path)).pending_units(videos) == expected
