"""Ledger: committed, open and requeued units from the names of commit records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.prepare.ledger import Ledger, read_records, requeue_videos
from cluster.prepare.work_units import VideoTable, WorkUnit, commit_url
from cluster.sources.manifest import Source, Sources
from cluster.storage.conditional_write import put_if_absent
from cluster.storage.files import json_bytes

A = Source(uri="/videos/a.mp4", source_id="a.mp4", bytes=10, version="1")
B = Source(uri="/videos/b.mp4", source_id="b.mp4", bytes=10)
VIDEOS = dict(VideoTable.named(Sources.of([A, B]), "settings"))
NAME_A, NAME_B = VIDEOS


def video_name(source: Source, digest: str) -> str:
    (name,) = VideoTable.named(Sources.of([source]), digest)
    return name


def commit(out: Path, unit: WorkUnit, segments: int) -> None:
    url = commit_url(str(out), unit, segments)
    assert put_if_absent(url, json_bytes({"name": unit.name}))


def test_ledger_of_an_empty_folder_opens_the_first_segment_of_every_video(tmp_path):
    units = Ledger.read(str(tmp_path)).pending_units(VIDEOS)
    assert units == [WorkUnit(NAME_A, A), WorkUnit(NAME_B, B)]


def test_ledger_first_segment_of_a_long_video_opens_the_others(tmp_path):
    commit(tmp_path, WorkUnit(NAME_A, A), segments=3)
    commit(tmp_path, WorkUnit(NAME_B, B), segments=1)
    ledger = Ledger.read(str(tmp_path))
    assert [(u.video, u.segment, u.segments) for u in ledger.pending_units(VIDEOS)] == [(NAME_A, 1, 3), (NAME_A, 2, 3)]
    for unit in ledger.pending_units(VIDEOS):
        commit(tmp_path, unit, unit.segments)
    ledger = Ledger.read(str(tmp_path))
    assert ledger.pending_units(VIDEOS) == []
    records = read_records(ledger.commit_urls([NAME_B, NAME_A]))
    assert [r["name"] for r in records] == [f"{NAME_B}.g0.0", *(f"{NAME_A}.g0.{n}" for n in range(3))]


def test_ledger_requeued_video_starts_a_new_generation_and_ignores_the_old_record(tmp_path):
    for name, source in VIDEOS.items():
        commit(tmp_path, WorkUnit(name, source), segments=1)
    requeue_videos(str(tmp_path), Ledger.read(str(tmp_path)), [NAME_A])
    ledger = Ledger.read(str(tmp_path))
    assert ledger.pending_units(VIDEOS) == [WorkUnit(NAME_A, A, generation=1)]
    assert len(ledger.commit_urls(VIDEOS)) == 1
    commit(tmp_path, WorkUnit(NAME_A, A, generation=1), segments=1)
    ledger = Ledger.read(str(tmp_path))
    assert ledger.pending_units(VIDEOS) == []
    assert [r["name"] for r in read_records(ledger.commit_urls([NAME_A]))] == [f"{NAME_A}.g1.0"]


def test_ledger_draft_of_a_marker_is_no_generation(tmp_path):
    (tmp_path / "work" / "requeued").mkdir(parents=True)
    (tmp_path / "work" / "requeued" / f"{NAME_A}.g1.123.tmp").write_bytes(b"")
    assert Ledger.read(str(tmp_path)).generation(NAME_A) == 0


def test_video_name_differs_for_sources_with_equal_concatenated_fields():
    one, other = Source(uri="/v/b.mp4", source_id="a|/x"), Source(uri="/x|/v/b.mp4", source_id="a")
    assert video_name(one, "settings") != video_name(other, "settings")


def test_ledger_ignores_other_files(tmp_path):
    commit(tmp_path, WorkUnit(NAME_A, A), segments=1)
    (tmp_path / "work" / "commits" / "notes.json").write_text("{}")
    (tmp_path / "work" / "commits" / f"{NAME_B}.g0.0of1.json.123.tmp").write_text("half")
    assert [u.video for u in Ledger.read(str(tmp_path)).pending_units(VIDEOS)] == [NAME_B]


@pytest.mark.parametrize("change", [{"bytes": 11}, {"version": "2"}, {"uri": "/elsewhere/a.mp4"}, {"source_id": "c"}])
def test_video_name_changes_with_the_file(change):
    assert video_name(replace(A, **change), "settings") != NAME_A
    assert video_name(A, "other settings") != NAME_A


def test_video_name_does_not_depend_on_metadata():
    assert video_name(replace(A, label="Biking", split="train", duration_s=3.0), "settings") == NAME_A
