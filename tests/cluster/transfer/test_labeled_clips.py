"""Selection of the clips of labeled videos, and detection of test videos in a pre-training dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.dataset.manifest import Manifest, Shard, write_manifest
from cluster.dataset.shards import clip_row, clip_schema, shard_bytes
from cluster.storage.files import write_bytes
from cluster.transfer.labeled_clips import LabeledClips, config_for_test_clips, load_labeled_split
from cluster.transfer.leakage import leaked_videos, require_no_leakage
from vgan.errors import InputError
from vgan.records import Clip, ClipScores
from vgan.transfer.ucf101 import Split, read_split
from vgan.video.config import ClipSpec, VideoConfig

SPEC = ClipSpec(num_frames=16, size=32)
TRAIN, TEST = (8, 9, 10, 11, 12), (1, 2)  # groups
CLASSES = ("Spin", "HandstandPushups")


@pytest.fixture
def ucf101(tmp_path: Path) -> Path:
    """Folder in the official layout: two classes, two videos per group, empty files."""
    root = tmp_path / "ucf"
    (root / "ucfTrainTestlist").mkdir(parents=True)
    lists = root / "ucfTrainTestlist"
    (lists / "classInd.txt").write_bytes(b"1 Spin\r\n2 HandstandPushups\r\n")
    for side, groups in (("train", TRAIN), ("test", TEST)):
        lines = []
        for label, name in enumerate(CLASSES, start=1):
            for group in groups:
                for clip in (1, 2):
                    path = f"{name}/v_{name}_g{group:02d}_c{clip:02d}.avi"
                    (root / "UCF-101" / name).mkdir(parents=True, exist_ok=True)
                    (root / "UCF-101" / path).touch()
                    lines.append(f"{path} {label}" if side == "train" else path)
        (lists / f"{side}list01.txt").write_bytes("\r\n".join([*lines, ""]).encode())
    return root


def write(url: Path, clips: list[tuple[str, float]]) -> Manifest:
    """Write a dataset of clips (source_id, start_s); all pixels of clip n have the value n."""
    rows = []
    for number, (source, start_s) in enumerate(clips):
        frames = np.full((16, 32, 32, 3), number, np.uint8)
        clip = Clip(start_s=start_s, shot=0, frames=frames, evidence=ClipScores())
        lineage = {"source_id": source, "source_uri": source, "label": None, "split": None, "decoder": ""}
        rows.append(clip_row(clip, clip_id=f"c{number}", **lineage))
    data = shard_bytes(pa.Table.from_pylist(rows, clip_schema(SPEC)))
    write_bytes(f"{url}/s.parquet", data)
    shard = Shard(path="s.parquet", rows=len(rows), bytes=len(data), sha256="")
    manifest = Manifest(clip=SPEC, config={}, counts={}, shards=[shard], digest="d")
    write_manifest(manifest, str(url))
    return manifest


def every_video(*starts: float) -> list[tuple[str, float]]:
    """List (source_id, start_s) of clips of every video, latest start first."""
    names = [f"{name}/v_{name}_g{g:02d}_c{c:02d}.avi" for name in CLASSES for g in (*TRAIN, *TEST) for c in (1, 2)]
    return [(name, start) for start in reversed(starts) for name in names]


def load(ucf101: Path, url: Path, clips: list[tuple[str, float]], **settings: Any) -> LabeledClips:
    return load_labeled_split(read_split(ucf101, 1), str(url), write(url, clips), "ucf101", **settings)


def starts_of(clips: list[tuple[str, float]], labeled: LabeledClips, video: int) -> list[float]:
    """Return the start of each selected clip of a video."""
    return [clips[labeled.frames[row, 0, 0, 0, 0]][1] for row in labeled.rows[video]]


@pytest.fixture
def splits(ucf101: Path) -> list[Split]:
    """Official split 1."""
    return [read_split(ucf101, 1)]


def test_load_split_takes_the_first_clip_of_each_video_in_the_lists_order(ucf101: Path, tmp_path: Path) -> None:
    clips = every_video(0.0, 1.0, 2.0)[:-1]  # a video lacks its first clip
    labeled = load(ucf101, tmp_path / "clips", clips)
    assert labeled.protocol == "ucf101-split1_1clip"
    assert labeled.classes == CLASSES
    assert labeled.train.sum() == 20
    assert (~labeled.train).sum() == 8
    assert labeled.videos[0] == "Spin/v_Spin_g08_c01.avi"
    assert labeled.rows.shape == (28, 1)
    assert [starts_of(clips, labeled, v)[0] for v in range(28)] == [0.0] * 27 + [1.0]
    assert labeled.labels.tolist() == [0] * 10 + [1] * 10 + [0] * 4 + [1] * 4


def test_load_split_spreads_test_clips_over_the_video_and_repeats_where_there_are_few(
    ucf101: Path, tmp_path: Path
) -> None:
    clips = every_video(*(0.25 * n for n in range(9)))
    labeled = load(ucf101, tmp_path / "clips", clips, clips_per_test_video=5)
    assert labeled.protocol == "ucf101-split1_5clip"
    tested = int(np.flatnonzero(~labeled.train)[0])
    assert starts_of(clips, labeled, tested) == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert starts_of(clips, labeled, 0) == [0.0] * 5  # a training video: its first clip only
    few = load(ucf101, tmp_path / "few", every_video(0.0, 0.25), clips_per_test_video=5)
    assert starts_of(every_video(0.0, 0.25), few, tested) == [0.0, 0.0, 0.0, 0.25, 0.25]


def test_load_split_for_validation_ignores_the_test_list_and_holds_out_entire_groups(
    ucf101: Path, tmp_path: Path
) -> None:
    labeled = load(ucf101, tmp_path / "clips", every_video(0.0), validation=True)
    assert labeled.protocol == "ucf101-split1-heldout0_1clip"
    assert not any("_g01_" in name or "_g02_" in name for name in labeled.videos)
    groups = [{name.partition("_c")[0] for name in labeled.videos[side]} for side in (labeled.train, ~labeled.train)]
    assert len(groups[1]) == 2  # a fifth of five groups of each class
    assert not groups[0] & groups[1]
    others = [
        load(ucf101, tmp_path / f"clips{fold}", every_video(0.0), validation=True, validation_fold=fold)
        for fold in (1, 2, 3)
    ]
    assert any(not np.array_equal(labeled.train, other.train) for other in others)


def test_video_settings_are_unchanged_for_one_clip_and_quarter_strides_for_more() -> None:
    config = VideoConfig(clip=ClipSpec(max_per_video=1))
    assert config_for_test_clips(config, 1) == config
    assert (config_for_test_clips(config, 10).clip.stride, config_for_test_clips(config, 10).clip.max_per_video) == (
        8,
        1000,
    )


# ---- leakage -----------------------------------------------------------------------------------------------------


def test_leaked_videos_ignores_folder_case_and_extension_and_includes_test_groups(
    splits: list[Split], tmp_path: Path
) -> None:
    names = ["a/v_Spin_g08_c01.avi", "b/v_spin_G01_c07.mp4", "v_HandStandPushups_g02_c01.avi", "other/golf.mp4"]
    write(tmp_path / "pretraining", [(name, 0.0) for name in names])
    assert leaked_videos(splits, str(tmp_path / "pretraining")) == sorted(names[1:3])


def test_checkpoint_trained_on_test_videos_is_refused_unless_allowed(splits: list[Split], tmp_path: Path) -> None:
    url = str(tmp_path / "pretraining")
    write(tmp_path / "pretraining", [("v_Spin_g01_c01.avi", 0.0), ("v_Spin_g09_c01.avi", 0.0)])
    with pytest.raises(InputError, match=r"contains 1 test videos.* v_Spin_g01_c01.avi.*allow_test_leakage=true"):
        require_no_leakage(splits, url, "d", allowed=False)
    assert require_no_leakage(splits, url, "d", allowed=True) == "pre-training saw 1 test videos"


def test_checkpoint_whose_dataset_is_missing_is_refused_unless_allowed(splits: list[Split], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        require_no_leakage(splits, str(tmp_path / "missing"), "d", allowed=False)
    assert require_no_leakage(splits, str(tmp_path / "missing"), "d", allowed=True) == "pre-training set not known"


def test_weights_without_a_recorded_dataset_are_refused_unless_allowed(splits: list[Split]) -> None:
    with pytest.raises(InputError, match=r"does not say what it was trained on.*allow_test_leakage=true"):
        require_no_leakage(splits, "", "", allowed=False)
    assert require_no_leakage(splits, "", "", allowed=True) == "pre-training set not known"


def test_checkpoint_whose_dataset_was_replaced_is_refused(splits: list[Split], tmp_path: Path) -> None:
    write(tmp_path / "pretraining", [("golf.mp4", 0.0)])
    with pytest.raises(InputError, match="replaced by another dataset"):
        require_no_leakage(splits, str(tmp_path / "pretraining"), "e", allowed=False)


def test_checkpoint_trained_on_the_training_list_has_no_remark(splits: list[Split], tmp_path: Path) -> None:
    write(tmp_path / "pretraining", [("Spin/v_Spin_g08_c01.avi", 0.0), ("golf.mp4", 0.0)])
    assert require_no_leakage(splits, str(tmp_path / "pretraining"), "d", allowed=False) == ""
