"""Which clips stand for a labelled video, and what a checkpoint must not have seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster.dataset.manifest import Manifest, Shard, write_manifest
from cluster.dataset.shards import clip_row, clip_schema, shard_bytes
from cluster.storage.files import write_bytes
from cluster.transfer.labeled_clips import config_for_test_clips, load_labeled_split
from cluster.transfer.leakage import leaked_videos, require_no_leakage
from vgan.errors import InputError
from vgan.records import Clip, ClipScores
from vgan.video.config import ClipSpec, VideoConfig

SPEC = ClipSpec(num_frames=16, size=32)
TRAIN, TEST = (8, 9, 10, 11, 12), (1, 2)  # groups
CLASSES = ("Spin", "HandstandPushups")


@pytest.fixture
def ucf101(tmp_path: Path) -> Path:
    """Two classes of the official layout, two videos a group, empty files."""
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
    """A dataset of clips (source_id, start_s), the n-th of which shows the value n."""
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
    names = [f"{name}/v_{name}_g{g:02d}_c{c:02d}.avi" for name in CLASSES for g in (*TRAIN, *TEST) for c in (1, 2)]
    return [(name, start) for start in reversed(starts) for name in names]  # not in order of time


def load(ucf101: Path, url: Path, clips: list[tuple[str, float]], **tests: object) -> object:
    return load_labeled_split(str(ucf101), 1, str(url), write(url, clips), "ucf101", **tests)  # type: ignore[arg-type]


def shown(clips: list[tuple[str, float]], found: object, video: int) -> list[float]:
    """Start of each clip that stands for a video."""
    return [clips[found.frames[row, 0, 0, 0, 0]][1] for row in found.rows[video]]  # type: ignore[attr-defined]


def test_load_split_takes_the_first_clip_of_each_video_in_the_lists_order(ucf101: Path, tmp_path: Path) -> None:
    clips = every_video(0.0, 1.0, 2.0)[:-1]  # a video lacks its first clip
    found = load(ucf101, tmp_path / "clips", clips)
    assert found.protocol == "ucf101-split1_1clip"
    assert found.classes == CLASSES
    assert found.train.sum() == 20
    assert (~found.train).sum() == 8
    assert found.videos[0] == "Spin/v_Spin_g08_c01.avi"
    assert found.rows.shape == (28, 1)
    assert [shown(clips, found, v)[0] for v in range(28)] == [0.0] * 27 + [1.0]
    assert found.labels.tolist() == [0] * 10 + [1] * 10 + [0] * 4 + [1] * 4


def test_load_split_spreads_test_clips_over_the_video_and_repeats_where_there_are_few(
    ucf101: Path, tmp_path: Path
) -> None:
    clips = every_video(*(0.25 * n for n in range(9)))
    found = load(ucf101, tmp_path / "clips", clips, test_clips=5)
    assert found.protocol == "ucf101-split1_5clip"
    tested = int(np.flatnonzero(~found.train)[0])
    assert shown(clips, found, tested) == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert shown(clips, found, 0) == [0.0] * 5  # of a training video the first alone
    few = load(ucf101, tmp_path / "few", every_video(0.0, 0.25), test_clips=5)
    assert shown(every_video(0.0, 0.25), few, tested) == [0.0, 0.0, 0.0, 0.25, 0.25]


def test_load_split_choosing_leaves_the_test_list_alone_and_holds_whole_groups_out(
    ucf101: Path, tmp_path: Path
) -> None:
    found = load(ucf101, tmp_path / "clips", every_video(0.0), choose=True)
    assert found.protocol == "ucf101-split1-heldout0_1clip"
    assert not any("_g01_" in name or "_g02_" in name for name in found.videos)
    groups = [{name.partition("_c")[0] for name in found.videos[side]} for side in (found.train, ~found.train)]
    assert len(groups[1]) == 2  # a fifth of five groups of each class
    assert not groups[0] & groups[1]
    others = [load(ucf101, tmp_path / f"clips{fold}", every_video(0.0), choose=True, fold=fold) for fold in (1, 2, 3)]
    assert any(not np.array_equal(found.train, other.train) for other in others)


def test_windows_of_one_clip_are_what_was_set() -> None:
    config = VideoConfig(clip=ClipSpec(max_per_video=1))
    assert config_for_test_clips(config, 1) == config
    assert (config_for_test_clips(config, 10).clip.stride, config_for_test_clips(config, 10).clip.max_per_video) == (
        8,
        1000,
    )


# ---- leaks -------------------------------------------------------------------------------------------------------


def test_leaked_finds_test_videos_and_their_groups_whatever_folder_case_or_ending(ucf101: Path, tmp_path: Path) -> None:
    names = ["a/v_Spin_g08_c01.avi", "b/v_spin_G01_c07.mp4", "v_HandStandPushups_g02_c01.avi", "other/golf.mp4"]
    write(tmp_path / "seen", [(name, 0.0) for name in names])
    assert leaked_videos(str(ucf101), [1], str(tmp_path / "seen")) == sorted(names[1:3])


def test_a_checkpoint_that_has_seen_test_videos_is_refused_unless_allowed(ucf101: Path, tmp_path: Path) -> None:
    seen = str(tmp_path / "seen")
    write(tmp_path / "seen", [("v_Spin_g01_c01.avi", 0.0), ("v_Spin_g09_c01.avi", 0.0)])
    with pytest.raises(InputError, match=r"1 videos of .* v_Spin_g01_c01.avi first.*allow_test_leakage=true"):
        require_no_leakage(str(ucf101), [1], seen, "d", allowed=False)
    assert require_no_leakage(str(ucf101), [1], seen, "d", allowed=True) == "pre-training saw 1 test videos"


def test_a_checkpoint_whose_dataset_is_gone_is_refused_unless_allowed(ucf101: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be told"):
        require_no_leakage(str(ucf101), [1], str(tmp_path / "gone"), "d", allowed=False)
    assert (
        require_no_leakage(str(ucf101), [1], str(tmp_path / "gone"), "d", allowed=True) == "pre-training set not known"
    )


def test_weights_that_do_not_say_what_they_saw_are_refused_unless_allowed(ucf101: Path) -> None:
    with pytest.raises(InputError, match=r"does not say what it was trained on.*allow_test_leakage=true"):
        require_no_leakage(str(ucf101), [1], "", "", allowed=False)
    assert require_no_leakage(str(ucf101), [1], "", "", allowed=True) == "pre-training set not known"


def test_a_checkpoint_whose_dataset_was_made_anew_is_refused_unless_allowed(ucf101: Path, tmp_path: Path) -> None:
    write(tmp_path / "seen", [("golf.mp4", 0.0)])
    with pytest.raises(InputError, match="another dataset stands there now"):
        require_no_leakage(str(ucf101), [1], str(tmp_path / "seen"), "e", allowed=False)


def test_a_checkpoint_of_the_training_list_is_taken_without_a_word(ucf101: Path, tmp_path: Path) -> None:
    write(tmp_path / "seen", [("Spin/v_Spin_g08_c01.avi", 0.0), ("golf.mp4", 0.0)])
    assert require_no_leakage(str(ucf101), [1], str(tmp_path / "seen"), "d", allowed=False) == ""
