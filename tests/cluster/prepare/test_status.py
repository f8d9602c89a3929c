"""Status, verification, quarantine, requeuing, inspection and export of a dataset."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.dataset.export_strips import write_strips
from cluster.dataset.manifest import read_manifest
from cluster.dataset.shards import decode_frames, read_clips
from cluster.dataset.verify import verify_dataset
from cluster.prepare.inspector import build_inspection
from cluster.prepare.packing import PackingConfig
from cluster.prepare.pipeline import name_videos, prepare
from cluster.prepare.status import dataset_status, list_quarantined, requeue
from cluster.sources.manifest import Source, list_folder, read_sources
from vgan.errors import InputError
from vgan.synthetic import draw_clip
from vgan.video.config import ClipSpec, DecodeConfig, FilterConfig, StabilizeConfig, VideoConfig
from vgan.video.encode import write_mp4
from vgan.viz.inspector import render_inspection

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

VIDEO = VideoConfig(
    clip=ClipSpec(num_frames=16, size=32, stride=8),
    decode=DecodeConfig(short_side=96),
    stabilize=StabilizeConfig(size=96),
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    folder = tmp_path_factory.mktemp("videos")
    write_mp4(draw_clip("Spin", num_frames=48, size=(96, 128)).frames, folder / "spin.mp4", 25.0)
    (folder / "garbage.mp4").write_bytes(hashlib.sha512(b"not a video").digest() * 100)
    return list_folder(str(folder))[0]


@pytest.fixture
def dataset(sources: list[Source], tmp_path: Path) -> Path:
    prepare(sources, str(tmp_path / "clips"), VIDEO, PackingConfig(shard_mb=1))
    return tmp_path / "clips"


def commits(out: Path) -> list[Path]:
    return sorted((out / "work" / "commits").iterdir())


def test_status_counts_committed_videos_and_rejects(dataset: Path, sources: list[Source]) -> None:
    videos = name_videos(sources, VIDEO)
    result = dataset_status(str(dataset), videos)
    assert (result.videos, result.complete, result.begun, result.clips, result.finished) == (2, 2, 0, 5, True)
    assert list(result.rejects) == ["decode: cannot_open"]
    assert result.source_hours == pytest.approx(48 / 25 / 3600, rel=0.05)
    commits(dataset)[0].unlink()
    (dataset / "manifest.json").unlink()
    result = dataset_status(str(dataset), videos)
    assert (result.videos, result.complete, result.finished) == (2, 1, False)
    assert dataset_status(str(dataset)).complete == 1


def test_verify_of_an_intact_dataset_is_empty(dataset: Path) -> None:
    assert verify_dataset(str(dataset)) == []


def test_verify_names_a_corrupt_or_missing_shard(dataset: Path) -> None:
    (shard,) = (dataset / "shards").rglob("*.parquet")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (defect,) = [line for line in verify_dataset(str(dataset)) if "shard" in line and "clips in" not in line]
    assert "shard-000000.parquet does not match its checksum" in defect
    shard.unlink()
    assert f"{shard.relative_to(dataset)} is missing" in verify_dataset(str(dataset))


def test_replace_repairs_a_damaged_dataset(dataset: Path, sources: list[Source]) -> None:
    digest = read_manifest(str(dataset)).digest
    next((dataset / "shards").rglob("*.parquet")).unlink()
    assert prepare(sources, str(dataset), VIDEO, PackingConfig(shard_mb=1), overwrite=True).digest == digest
    assert verify_dataset(str(dataset)) == []


def test_replace_without_pixels_changes_nothing(dataset: Path, sources: list[Source]) -> None:
    (pixels,) = (dataset / "work" / "units").iterdir()
    pixels.unlink()
    with pytest.raises(InputError, match=r"1 files of pixels are missing"):
        prepare(sources, str(dataset), VIDEO, PackingConfig(seed=1, shard_mb=1), overwrite=True)
    assert verify_dataset(str(dataset)) == []


def test_status_of_a_missing_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing was prepared"):
        dataset_status(str(tmp_path / "nowhere"))


def test_verify_detects_an_altered_manifest(dataset: Path) -> None:
    manifest = json.loads((dataset / "manifest.json").read_text())
    manifest["counts"]["clips"] += 1
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    defects = verify_dataset(str(dataset))
    assert any("expected 6 by the manifest" in defect for defect in defects)
    assert any("digest" in defect for defect in defects)


def test_requeue_repeats_only_the_rejected_video(dataset: Path, sources: list[Source]) -> None:
    before = {p: p.stat().st_mtime_ns for p in commits(dataset)}
    videos = name_videos(sources, VIDEO)
    with pytest.raises(InputError, match=r"reason='timeout'.*cannot_open \(1\)"):
        requeue(str(dataset), "timeout", videos)
    assert requeue(str(dataset), "cannot_open", videos) == 1
    assert requeue(str(dataset), "cannot_open", videos) == 0  # killed before it finished: it resumes
    manifest = prepare(sources, str(dataset), VIDEO, PackingConfig(shard_mb=1), overwrite=True)
    assert manifest.counts["accepted"] == 1
    new = set(commits(dataset)) - set(before)
    assert [p.name.split(".")[1] for p in new] == ["g1"]
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_quarantine_lists_videos_that_killed_their_decoder(dataset: Path) -> None:
    assert list_quarantined(str(dataset)) == []
    (record,) = (p for p in commits(dataset) if json.loads(p.read_text())["rejects"])
    value = json.loads(record.read_text())
    value["quarantined"] = True
    value["rejects"][0] |= {"reason": "crashed", "detail": "signal 11"}
    record.write_text(json.dumps(value))
    (row,) = list_quarantined(str(dataset))
    assert (row["source_id"], row["reason"], row["detail"]) == ("garbage.mp4", "crashed", "signal 11")


def test_inspection_shows_clips_before_and_after_with_their_scores(dataset: Path) -> None:
    content = build_inspection(str(dataset), num=2)
    worst = content.groups[0].clips
    assert len(worst) == 2
    assert worst[0].strain >= worst[1].strain
    assert worst[0].before.shape == worst[0].after.shape == (16, 32, 32, 3)
    assert abs(worst[0].before.astype(int) - worst[0].after).mean() < 40  # the same interval of the same video
    page = render_inspection(content)
    assert "spin.mp4 at " in page
    assert "residual_px" in page
    assert page.count("<video") == sum(len(group.clips) for group in content.groups)
    assert read_manifest(str(dataset)).digest[:16] in page


def test_written_strips_can_be_prepared_again(dataset: Path, tmp_path: Path) -> None:
    assert write_strips(str(dataset), str(tmp_path / "tiny")) == 5
    names = (tmp_path / "tiny" / "list.txt").read_text().split()
    assert sorted(names) == names
    sources = read_sources(str(tmp_path / "tiny" / "list.txt"))
    config = replace(VIDEO, stabilize=StabilizeConfig(preset="off"), filters=FilterConfig(disabled=["near_duplicate"]))
    manifest = prepare(sources, str(tmp_path / "again"), config, PackingConfig(shard_mb=1))
    assert manifest.counts["clips"] == 5
    table = read_clips(str(tmp_path / "again"), manifest, ["source_id", "frames"])
    clips = dict(zip(table["source_id"].to_pylist(), decode_frames(table["frames"], manifest.clip), strict=True))
    for row, frames in original_clips(dataset):
        assert np.abs(clips[f"clips/{row[:2]}/{row}.jpg"].astype(int) - frames).mean() < 3  # within JPEG loss


def original_clips(dataset: Path) -> list[tuple[str, np.ndarray]]:
    manifest = read_manifest(str(dataset))
    table = read_clips(str(dataset), manifest, ["clip_id", "frames"])
    return list(zip(table["clip_id"].to_pylist(), decode_frames(table["frames"], manifest.clip), strict=True))
