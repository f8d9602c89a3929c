"""Shards: round trip and deterministic bytes. Manifest: digests depend on content only."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.dataset.manifest import Manifest, Shard, config_digest, read_manifest, work_digest, write_manifest
from cluster.dataset.shards import clip_row, clip_schema, decode_frames, frame_bytes, read_clips, shard_bytes
from cluster.storage.files import write_json
from vgan.errors import InputError
from vgan.records import VIDEO_REVISION, Clip, ClipScores
from vgan.video.config import ClipSpec, DecodeConfig, VideoConfig
from vgan.video.image_strips import write_strip

SPEC = ClipSpec(num_frames=16, size=32)


def table(num: int, seed: int = 0) -> tuple[pa.Table, np.ndarray]:
    """Make `num` rows of noise, and their frames."""
    frames = np.random.default_rng(seed).integers(0, 256, (num, 16, 32, 32, 3)).astype(np.uint8)
    rows = [
        clip_row(
            Clip(
                start_s=n / 8, shot=n, frames=f, evidence=ClipScores(residual_px=n / 3, num_matches=n, stabilized=n > 1)
            ),
            clip_id=f"c{n}",
            source_id="a b\u00e9.mp4",
            source_uri="/v",
            label=None,
            split="train",
            decoder="pyav",
        )
        for n, f in enumerate(frames)
    ]
    return pa.Table.from_pylist(rows, clip_schema(SPEC)), frames


def reread(data: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(data))


def test_shard_round_trip_is_exact() -> None:
    written, frames = table(70)
    read = reread(shard_bytes(written))
    assert read.drop_columns("frames").to_pylist() == written.drop_columns("frames").to_pylist()
    assert (decode_frames(read["frames"], SPEC) == frames).all()
    assert read.to_pylist()[2] | {"frames": b""} == {
        "clip_id": "c2", "source_id": "a b\u00e9.mp4", "source_uri": "/v", "start_s": 0.25, "shot": 2, "label": None,
        "split": "train", "decoder": "pyav", "frames": b"",
        **asdict(ClipScores(residual_px=2 / 3, num_matches=2, stabilized=True)),
    }  # fmt: skip


def test_shard_frames_are_fixed_size_binary_in_groups_of_64_rows() -> None:
    file = pq.ParquetFile(io.BytesIO(shard_bytes(table(130)[0])))
    assert file.schema_arrow.field("frames").type == pa.binary(frame_bytes(SPEC))
    assert [file.metadata.row_group(n).num_rows for n in range(3)] == [64, 64, 2]
    assert file.schema_arrow.metadata[b"frames"] == b"uint8 THWC 16x32x32x3 RGB"
    assert file.schema_arrow.metadata[b"schema_version"] == b"2"


@pytest.mark.parametrize(("start", "length"), [(0, 5), (2, 2), (4, 1), (0, 0)])
def test_to_frames_reads_slices_of_a_column(start: int, length: int) -> None:
    written, frames = table(5)
    column = written["frames"].slice(start, length)
    assert (decode_frames(column, SPEC) == frames[start : start + length]).all()
    chunked = pa.chunked_array(
        [written["frames"].chunk(0).slice(n, 1) for n in range(start, start + length)], column.type
    )
    assert (decode_frames(chunked, SPEC) == frames[start : start + length]).all()


def test_jpeg_shard_round_trip_is_close() -> None:
    written, _ = table(3)
    smooth = np.broadcast_to(np.linspace(0, 255, 32).astype(np.uint8)[:, None, None], (16, 32, 32, 3))
    frames = np.stack([np.roll(smooth, 5 * n, axis=1) for n in range(3)])
    column = pa.array([write_strip(clip) for clip in frames], pa.binary())
    data = shard_bytes(written.set_column(written.schema.names.index("frames"), "frames", column))
    read = reread(data)
    assert len(data) < frames.nbytes / 4
    for start, length in ((0, 3), (1, 2), (2, 0)):
        decoded = decode_frames(read["frames"].slice(start, length), SPEC)
        assert decoded.shape == (length, 16, 32, 32, 3)
        assert decoded.dtype == np.uint8
        assert np.abs(decoded.astype(int) - frames[start : start + length]).max(initial=0) < 24
    assert clip_schema(SPEC, "jpeg").metadata[b"frames"].startswith(b"JPEG of 16 frames of 32x32 below each other")


def test_clip_row_takes_frames_in_any_memory_layout() -> None:
    frames = np.arange(16 * 32 * 32 * 3, dtype=np.uint8).reshape(3, 32, 32, 16).transpose(3, 1, 2, 0)
    row = clip_row(Clip(start_s=0.0, shot=0, frames=frames, evidence=ClipScores()))
    assert row["frames"] == frames.copy(order="C").tobytes()


def test_table_bytes_are_deterministic() -> None:
    one, other = shard_bytes(table(70)[0]), shard_bytes(table(70)[0])
    assert one == other
    assert one != shard_bytes(table(70, seed=1)[0])
    assert shard_bytes(reread(one)) == one  # independent of the table's origin


def test_config_digest_changes_with_any_setting() -> None:
    base = VideoConfig()
    others = [replace(base, clip=replace(base.clip, stride=16)), replace(base, decode=DecodeConfig(max_gap_s=0.3))]
    assert len({config_digest(c) for c in (base, *others)}) == 3
    assert config_digest(base) == config_digest(VideoConfig())


def manifest() -> Manifest:
    shards = [Shard(path="shards/0.parquet", rows=3, bytes=10, sha256="ab")]
    return Manifest(clip=SPEC, config={"seed": 0}, counts={"clips": 3}, shards=shards)


def test_manifest_digest_depends_on_content_only() -> None:
    one = manifest()
    digest = one.content_digest()
    assert replace(one, created="2020-01-01", git_commit="abc", digest="x").content_digest() == digest
    changed = [
        replace(one, clip=replace(SPEC, fps=24.0)),
        replace(one, config={"seed": 1}),
        replace(one, counts={"clips": 4}),
        replace(one, shards=[replace(one.shards[0], sha256="cd")]),
    ]
    assert len({digest, *(other.content_digest() for other in changed)}) == 5


def test_manifest_round_trip(tmp_path: Path) -> None:
    one = replace(manifest(), digest="d" * 64, created="now", git_commit="abc")
    write_manifest(one, str(tmp_path))
    assert read_manifest(str(tmp_path)) == one


def test_read_manifest_without_dataset_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no dataset at .*nowhere.*jobs\.prepare"):
        read_manifest(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("version", [0, 1, 3, None])
def test_read_manifest_of_another_version_names_both(tmp_path: Path, version: int | None) -> None:
    write_manifest(manifest(), str(tmp_path))
    value = json.loads((tmp_path / "manifest.json").read_text()) | {"schema_version": version}
    write_json(str(tmp_path / "manifest.json"), value)
    with pytest.raises(InputError, match=rf"schema version {version}, this code reads 2"):
        read_manifest(str(tmp_path))


def test_read_clips_joins_the_shards_in_stored_order(write_dataset: Callable[..., Manifest], tmp_path: Path) -> None:
    written = write_dataset(str(tmp_path), num_clips=12, shard_rows=5)
    clips = read_clips(str(tmp_path), written, columns=["clip_id", "frames"])
    assert clips.column_names == ["clip_id", "frames"]
    assert clips["clip_id"].to_pylist() == [f"clip-{n}" for n in range(12)]
    assert decode_frames(clips["frames"], written.clip)[:, 0, 0, 0, 2].tolist() == list(range(12))


def test_digests_depend_on_settings_and_video_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    config = VideoConfig(clip=SPEC)
    longer_timeout = replace(config, decode=replace(config.decode, timeout_s=config.decode.timeout_s + 1))
    assert work_digest(longer_timeout) == work_digest(config)  # the same pixels
    assert config_digest(longer_timeout) != config_digest(config)
    before = work_digest(config), config_digest(config)
    monkeypatch.setattr("cluster.dataset.manifest.VIDEO_REVISION", VIDEO_REVISION + 1)
    assert work_digest(config) != before[0]
    assert config_digest(config) != before[1]
