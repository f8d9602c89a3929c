"""Scene filter on datasets: rejects, subsets by category, and datasets without scene scores."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cluster.dataset.card import card, card_text
from cluster.dataset.clip_selection import scene_mask
from cluster.dataset.manifest import Manifest, config_digest, digest_settings, read_manifest, work_digest
from cluster.dataset.shards import read_clips
from cluster.prepare.inspector import build_inspection
from cluster.prepare.packing import PackingConfig
from cluster.prepare.pipeline import prepare
from cluster.prepare.scene_scores import count_scenes, resolve_classifier, scene_mismatches
from cluster.sources.manifest import list_folder
from vgan.errors import InputError
from vgan.scenes.config import SceneConfig
from vgan.scenes.labels import places365_labels
from vgan.scenes.networks import ResNet
from vgan.synthetic import draw_clip
from vgan.video.config import ClipSpec, DecodeConfig, FilterConfig, StabilizeConfig, VideoConfig
from vgan.video.encode import write_mp4
from vgan.viz.inspector import render_inspection

SCORED = SceneConfig(sha256="ab", categories=["beach", "golf"], min_probability=0.3)


def clips(beach: list[float], golf: list[float]) -> pa.Table:
    names = ["sea" if b > g else "lawn" for b, g in zip(beach, golf, strict=True)]
    sources = [f"v{n // 2}" for n in range(len(beach))]
    return pa.table({"scene": names, "scene_beach": beach, "scene_golf": golf, "source_id": sources})


def test_refusals_depend_on_threshold_and_categories_and_name_the_best_category() -> None:
    table = clips([0.3, 0.1, 0.0], [0.0, 0.8, 0.2])
    assert scene_mismatches(table, SCORED) == [None, None, "lawn; golf 0.2, at least 0.3"]
    assert scene_mismatches(table, replace(SCORED, keep_categories=["beach"])) == [
        None,
        "lawn; beach 0.1, at least 0.3",
        "lawn; beach 0, at least 0.3",
    ]
    assert scene_mismatches(table, replace(SCORED, min_probability=0.0)) == [None] * 3
    assert scene_mismatches(table, SceneConfig()) == [None] * 3


def test_scene_counts_of_clips_videos_and_top_labels() -> None:
    counts = count_scenes(clips([0.3, 0.5, 0.0], [0.0, 0.4, 0.2]), ["beach", "golf"], 0.3)
    assert counts == {
        "categories": {
            "beach": {"clips": 2, "videos": 1, "mean": 0.2667},
            "golf": {"clips": 1, "videos": 1, "mean": 0.2},
        },
        "likeliest": {"sea": 2, "lawn": 1},
    }


def test_digests_without_classifier_do_not_depend_on_scene_settings() -> None:
    plain = VideoConfig()
    assert (config_digest(plain), work_digest(plain)) == ("f906888ff56b6c06", "ad287182739bffa8")
    other = replace(plain, scene=SceneConfig(categories=["beach"], min_probability=0.9))  # without a classifier
    assert (config_digest(other), work_digest(other)) == (config_digest(plain), work_digest(plain))
    assert "scene" not in digest_settings(other)


def test_work_digest_depends_on_classifier_and_scoring_not_on_selection_or_path() -> None:
    def work(**change: object) -> str:
        return work_digest(VideoConfig(scene=replace(SCORED, **change)))  # type: ignore[arg-type]

    assert work() != work_digest(VideoConfig())
    assert work(weights="/a/w", gpus=0.5) == work(min_probability=0.9) == work(keep_categories=["golf"]) == work()
    assert (
        len(
            {
                work(),
                work(sha256="cd"),
                work(categories=["beach"]),
                work(frames_per_group=1),
                work(group_duration_s=1.0),
            }
        )
        == 5
    )
    moved, stricter = (VideoConfig(scene=replace(SCORED, **c)) for c in ({"weights": "/b"}, {"min_probability": 0.9}))
    assert config_digest(moved) == config_digest(VideoConfig(scene=SCORED)) != config_digest(stricter)


def test_rows_showing_needs_scores(write_dataset: Callable[..., Manifest], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no scores of category 'beach'"):
        scene_mask(str(tmp_path), write_dataset(str(tmp_path)), ["beach"], 0.5)
    with pytest.raises(InputError, match="did you mean 'beach'"):
        scene_mask(str(tmp_path), write_dataset(str(tmp_path)), ["beech"], 0.5)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Small ResNet whose probability of beach grows with red, and of golf with green."""
    network = ResNet((1, 1, 1, 1), deep=False)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        network.conv1.weight[0, 0, 3, 3] = network.conv1.weight[1, 1, 3, 3] = 1.0
        network.bn1.weight.fill_(1.0)
        for name in ("layer2", "layer3", "layer4"):  # shortcut connections; the blocks' convolutions are zero
            conv, norm = getattr(network, name)[0].downsample
            conv.weight[0, 0] = conv.weight[1, 1] = 1.0
            norm.weight.fill_(1.0)
        network.fc.weight[places365_labels().index("beach"), 0] = network.fc.weight[
            places365_labels().index("golf_course"), 1
        ] = 20.0
    buffer = io.BytesIO()
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, buffer)
    path = tmp_path / "resnet.pth.tar"
    path.write_bytes(buffer.getvalue())
    return path


def test_with_classifier_sets_and_checks_the_digest(weights: Path) -> None:
    config = resolve_classifier(VideoConfig(scene=SceneConfig(weights=str(weights))))
    assert len(config.scene.sha256) == 64
    assert resolve_classifier(config) == config
    with pytest.raises(InputError, match="has SHA-256"):
        resolve_classifier(replace(config, scene=replace(config.scene, sha256="0" * 64)))
    with pytest.raises(InputError, match="no file at"):
        resolve_classifier(VideoConfig(scene=SceneConfig(weights=f"{weights}.gone")))
    with pytest.raises(InputError, match=r"give its file in scene\.weights"):
        resolve_classifier(VideoConfig(scene=SceneConfig(sha256="ab")))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_prepare_stores_scene_scores_and_filters_at_packing(weights: Path, tmp_path: Path) -> None:
    """Check on red and green videos that another selection decodes nothing again."""
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    for name, color in (("red.mp4", [1.0, 0.3, 0.3]), ("green.mp4", [0.3, 1.0, 0.3])):
        frames = draw_clip("Spin" if name == "red.mp4" else "Bounce", num_frames=48, size=(96, 128)).frames
        write_mp4((frames * np.array(color)).astype(np.uint8), videos / name, 25.0)
    sources, _ = list_folder(str(videos))
    config = VideoConfig(
        clip=ClipSpec(num_frames=16, size=32, stride=8),
        decode=DecodeConfig(short_side=96),
        stabilize=StabilizeConfig(preset="off"),
        filters=FilterConfig(disabled=["near_duplicate"]),
        scene=SceneConfig(weights=str(weights), categories=["beach", "golf"], min_probability=0.0),
    )
    config = resolve_classifier(config)
    packing = PackingConfig(seed=0, shard_mb=1)
    manifest = prepare(sources, str(out), config, packing)
    table = read_clips(str(out), manifest).drop_columns("frames")
    rows = {row["source_id"]: row for row in table.to_pylist()}
    assert rows["red.mp4"]["scene_beach"] > rows["red.mp4"]["scene_golf"] > 0
    assert rows["green.mp4"]["scene_golf"] > rows["green.mp4"]["scene_beach"] > 0
    assert (rows["red.mp4"]["scene"], rows["green.mp4"]["scene"]) == ("beach", "golf_course")
    bound = round((rows["red.mp4"]["scene_beach"] + rows["green.mp4"]["scene_beach"]) / 2, 3)
    showing = scene_mask(str(out), manifest, ["beach"], bound)
    assert [source == "red.mp4" for source in table["source_id"].to_pylist()] == showing.tolist()
    assert manifest.counts["scenes"]["likeliest"] == {"beach": 5, "golf_course": 5}

    before = {p.name: p.stat().st_mtime_ns for p in (out / "work").rglob("*") if p.is_file()}
    moved = weights.rename(tmp_path / "elsewhere.pth.tar")
    filtered = replace(config.scene, weights=str(moved), keep_categories=["beach"], min_probability=bound)
    again = prepare(sources, str(out), replace(config, scene=filtered), packing, overwrite=True)
    assert {p.name: p.stat().st_mtime_ns for p in (out / "work").rglob("*") if p.is_file()} == before
    assert again.counts["rejected_by_reason"] == {"other_scene": 1}
    assert set(read_clips(str(out), again, ["source_id"])["source_id"].to_pylist()) == {"red.mp4"}
    assert pq.read_table(out / "rejects.parquet")["detail"][0].as_py().startswith("golf_course; beach ")
    assert read_manifest(str(out)).video.scene.keep_categories == ["beach"]

    page = render_inspection(build_inspection(str(out), num=2))
    assert "highest-scoring clips of golf" in page
    assert "| beach | 5 | 1 |" in card_text(card(str(out)))
