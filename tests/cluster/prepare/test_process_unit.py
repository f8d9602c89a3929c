"""A unit's record says what decoding lost and changed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from cluster.prepare.commit_records import parse_records, to_table
from cluster.prepare.process_unit import num_segments, process_unit
from cluster.prepare.work_units import VideoTable, WorkUnit
from cluster.sources.manifest import Source, Sources
from cluster.storage.files import json_bytes
from vgan.video.config import ClipSpec, DecodeConfig, StabilizeConfig, VideoConfig
from vgan.video.encode import write_mp4

VIDEO = VideoConfig(
    clip=ClipSpec(num_frames=16, size=32, stride=16),
    decode=DecodeConfig(short_side=64),
    stabilize=StabilizeConfig(preset="off"),
)


def committed(path: Path, out: Path) -> dict:
    """Process a video and return its commit record."""
    source = Source(uri=str(path), source_id=path.name, bytes=path.stat().st_size)
    (name,) = VideoTable.named(Sources.of([source]), "settings")
    process_unit(asdict(WorkUnit(name, source)), str(out), VIDEO)
    (record,) = (out / "work" / "commits").iterdir()
    return json.loads(record.read_bytes())


@pytest.fixture
def moving() -> np.ndarray:
    """Frames (600, 96, 128, 3) of noise that moves sideways by two pixels per frame."""
    scene = np.kron(np.random.default_rng(0).integers(0, 256, (24, 332, 3), np.uint8), np.ones((4, 4, 1), np.uint8))
    return np.stack([scene[:, 2 * t : 2 * t + 128] for t in range(600)])


def test_record_of_a_damaged_video_keeps_the_clips_and_rejects_the_damage(moving: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_mp4(moving, path, 25)  # key frames after 250 frames at most
    data = bytearray(path.read_bytes())
    position = len(data) * 3 // 5
    data[position : position + 2048] = bytes(2048)
    path.write_bytes(data)
    record = committed(path, tmp_path / "out")
    damages = [reject for reject in record["rejects"] if reject["reason"] == "damaged"]
    assert [(reject["stage"], reject["start_s"] > 10) for reject in damages] == [("decode", True)]
    starts_s = record["clips"]["start_s"]
    assert min(starts_s) < damages[0]["start_s"] < max(starts_s)
    assert not record["quarantined"]


def test_record_of_interlaced_video_says_so_and_old_records_are_read(moving: np.ndarray, tmp_path: Path) -> None:
    woven = moving[::2].copy()
    woven[:, 1::2] = moving[1::2, 1::2]
    write_mp4(woven, tmp_path / "a.mp4", 25)
    record = committed(tmp_path / "a.mp4", tmp_path / "out")
    assert (record["probe"]["deinterlaced"], record["probe"]["cadence"], record["probe"]["notes"]) == (True, "", "")
    old = record | {
        "probe": {k: v for k, v in record["probe"].items() if k not in ("deinterlaced", "cadence", "notes")}
    }
    table = to_table([record, old])
    assert [probe["deinterlaced"] for probe in table["probe"].to_pylist()] == [True, None]
    assert parse_records([json_bytes(old)])["probe"].to_pylist()[0]["width"] == 128


def test_num_segments_bounds_length_and_pixels() -> None:
    assert num_segments(None, 600.0) == num_segments(363, 600.0, 640 * 360 * 30) == 1
    assert num_segments(3600, 600.0, 1920 * 1080 * 30) == 6
    assert num_segments(363, 600.0, 3840 * 2160 * 30) == 2
    assert num_segments(363, 600.0, 3840 * 2160 * 60) == 5
    assert num_segments(1e12, 600.0, 1e12) == 1000
