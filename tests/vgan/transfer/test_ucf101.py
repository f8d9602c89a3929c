"""UCF101's official lists, and splits of partial copies."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from vgan.errors import InputError
from vgan.transfer.ucf101 import read_classes, read_lists, read_split


def make_copy(root: Path, *, classes: str, train: str, test: str, files: tuple[str, ...]) -> Path:
    """Write a copy of UCF101 with split 1 only; lists are written with CRLF."""
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    for name, text in (("classInd", classes), ("trainlist01", train), ("testlist01", test)):
        (lists / f"{name}.txt").write_bytes(text.replace("\n", "\r\n").encode())
    (root / "UCF-101").mkdir()
    for file in files:
        path = root / "UCF-101" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"video")
    return root


@pytest.fixture
def partial_copy(tmp_path: Path) -> Path:
    """Three classes listed, the middle one absent, one train file missing, one directory spelled another way."""
    return make_copy(
        tmp_path,
        classes="1 Archery\n2 Bowling\n3 HandstandPushups\n",
        train="Archery/v_Archery_g08_c01.avi 1\nArchery/v_Archery_g08_c02.avi 1\nBowling/v_Bowling_g09_c01.avi 2\n"
        "HandstandPushups/v_HandStandPushups_g25_c01.avi 3\n",
        test="Archery/v_Archery_g01_c01.avi\nBowling/v_Bowling_g01_c01.avi\n"
        "HandstandPushups/v_HandStandPushups_g07_c02.avi\n",
        files=(
            "Archery/v_Archery_g08_c01.avi",
            "Archery/v_Archery_g01_c01.avi",
            "HandStandPushups/v_HandstandPushups_g25_c01.avi",
            "HandStandPushups/v_HandstandPushups_g07_c02.avi",
        ),
    )


@pytest.mark.parametrize(
    ("split", "num_train", "num_test", "test_groups", "fewest", "most"),
    [
        (1, 9537, 3783, range(1, 8), 72, 121),
        (2, 9586, 3734, range(8, 15), 72, 122),
        (3, 9624, 3696, range(15, 22), 72, 124),
    ],
)
def test_official_lists_have_the_published_counts_and_no_shared_group(
    shared: Path, split: int, num_train: int, num_test: int, test_groups: range, fewest: int, most: int
) -> None:
    videos = read_lists(shared / "data/ucf101/ucfTrainTestlist", split)
    train = [video for video in videos if video.side == "train"]
    test = [video for video in videos if video.side == "test"]
    assert (len(train), len(test)) == (num_train, num_test)
    assert {video.group for video in test} == set(test_groups)
    assert not {(v.label, v.group) for v in train} & {(v.label, v.group) for v in test}
    per_class = Counter(video.label for video in train)
    assert sorted(per_class) == list(range(101))
    assert (min(per_class.values()), max(per_class.values())) == (fewest, most)
    assert {video.label for video in test} == set(range(101))


def test_official_lists_label_from_the_directory_whatever_the_file_is_called(shared: Path) -> None:
    lists = shared / "data/ucf101/ucfTrainTestlist"
    handstands = [video for video in read_lists(lists, 1) if video.path.name.startswith("v_HandStandPushups")]
    assert len(handstands) == 128
    assert {video.class_name for video in handstands} == {"HandstandPushups"}
    assert {video.label for video in handstands} == {read_classes(lists)["HandstandPushups"]}


def test_read_split_real_partial_copy_accounts_for_every_line(shared: Path) -> None:
    split = read_split(shared / "data/ucf101", 1)
    assert len(split.videos) + len(split.missing) == 13320
    assert split.class_names == ("Archery", "BasketballDunk", "HorseRace", "PlayingPiano")
    assert all(video.path.is_file() and video.path.parent.name == video.class_name for video in split.videos)
    assert sorted(split.compact_labels.values()) == [0, 1, 2, 3]


def test_read_split_partial_copy_keeps_official_labels_and_counts_missing(partial_copy: Path) -> None:
    split = read_split(partial_copy, 1)
    videos = [(video.path.name, video.label, video.group, video.side) for video in split.videos]
    assert videos == [
        ("v_Archery_g08_c01.avi", 0, 8, "train"),
        ("v_HandstandPushups_g25_c01.avi", 2, 25, "train"),
        ("v_Archery_g01_c01.avi", 0, 1, "test"),
        ("v_HandstandPushups_g07_c02.avi", 2, 7, "test"),
    ]
    assert split.missing == (
        "Archery/v_Archery_g08_c02.avi",
        "Bowling/v_Bowling_g09_c01.avi",
        "Bowling/v_Bowling_g01_c01.avi",
    )
    assert split.class_names == ("Archery", "HandstandPushups")
    assert split.compact_labels == {0: 0, 2: 1}
    assert [video.label for video in split.videos if video.side == "test"] == [0, 2]


def test_read_split_missing_folder_error_names_it_and_its_contents(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.*UCF-101.*ucfTrainTestlist"):
        read_split(tmp_path / "nowhere", 1)


def test_read_split_without_lists_names_the_list_folder(partial_copy: Path) -> None:
    (partial_copy / "ucfTrainTestlist").rename(partial_copy / "elsewhere")
    with pytest.raises(InputError, match=r"no folder .*ucfTrainTestlist"):
        read_split(partial_copy, 1)


def test_read_split_absent_split_names_the_list_file(partial_copy: Path) -> None:
    with pytest.raises(InputError, match=r"trainlist02\.txt"):
        read_split(partial_copy, 2)


def test_read_split_side_without_videos_is_named(partial_copy: Path) -> None:
    for path in (partial_copy / "UCF-101").glob("*/*_g0[17]_*.avi"):
        path.unlink()
    with pytest.raises(InputError, match="none of the test videos of split 1"):
        read_split(partial_copy, 1)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("Archery/v_Archery_g08_c01.avi 2\n", "gives Archery the number 1, but the list has '2'"),
        ("Cooking/v_Cooking_g08_c01.avi 1\n", r"trainlist01\.txt:1"),
        ("Archery/archery.avi 1\n", r"trainlist01\.txt:1"),
        ("Archery/v_Archery_g08_c01.avi\n", "the list has ''"),
    ],
)
def test_read_lists_wrong_line_is_named(tmp_path: Path, train: str, message: str) -> None:
    root = make_copy(tmp_path, classes="1 Archery\n", train=train, test="", files=())
    with pytest.raises(InputError, match=message):
        read_lists(root / "ucfTrainTestlist", 1)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("Archery/v_Archery_g08_c07.avi\n", r"groups on both sides of the split: Archery g08;"),
        ("Archery/v_archery_G08_c01.avi\n", r"videos on both sides of the split: Archery/v_Archery_g08_c01\.avi;"),
        (
            "".join(f"Archery/v_Archery_g{g:02d}_c02.avi\n" for g in range(8, 15)),
            r"groups on both sides of the split: Archery g08, .*, Archery g12 and 2 more;",
        ),
        ("Bowling/v_Bowling_g08_c01.avi\n", ""),  # numbers of groups repeat in every class
    ],
)
def test_read_lists_group_or_video_on_both_sides_is_refused_by_name(tmp_path: Path, test: str, message: str) -> None:
    train = "".join(f"Archery/v_Archery_g{g:02d}_c01.avi 1\n" for g in range(8, 15))
    root = make_copy(tmp_path, classes="1 Archery\n2 Bowling\n", train=train, test=test, files=())
    if message:
        with pytest.raises(InputError, match=message):
            read_lists(root / "ucfTrainTestlist", 1)
    else:
        assert len(read_lists(root / "ucfTrainTestlist", 1)) == 8


def test_read_lists_unknown_split_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got 4"):
        read_lists(tmp_path, 4)
