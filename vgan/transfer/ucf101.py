"""Reader of UCF101's official files: class index, three train/test splits, and the videos of a split on disk.

The lists end lines with CRLF and number classes from 1. Test lists have no labels, so every label is taken from the
directory in the line. One class is spelled in two ways (directory HandstandPushups, files v_HandStandPushups_*, and
some copies differ), so names of directories and files are matched without regard to case.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vgan.errors import InputError

log = logging.getLogger(__name__)

Side = Literal["train", "test"]

_NAME = re.compile(r"v_\w+_g(?P<group>\d+)_c\d+\.avi", re.IGNORECASE)
_EXPECTED = "expected a folder that contains UCF-101/<Class>/*.avi and ucfTrainTestlist/*.txt"
MAX_NAMED = 5  # videos or groups named in one message


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video in the lists of a split."""

    path: Path  # file on disk; relative to UCF-101/ if only the lists were read
    label: int  # official class number minus 1: 0 to 100
    class_name: str  # as spelled in classInd.txt
    group: int  # clips of one group were cut from the same source video
    side: Side


@dataclass(frozen=True, kw_only=True)
class Split:
    """Videos of a split: those on disk, and those listed but missing."""

    number: int
    videos: tuple[Video, ...]
    missing: tuple[str, ...]  # paths as listed; `videos` and `missing` together are all lines of the two lists

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes on disk, in official order."""
        return tuple(dict(sorted((video.label, video.class_name) for video in self.videos)).values())

    @property
    def compact_labels(self) -> dict[int, int]:
        """Official label -> 0..K-1 over the classes on disk, in official order; the identity for a complete copy."""
        present = sorted({video.label for video in self.videos})
        return {label: position for position, label in enumerate(present)}


def read_classes(lists: Path) -> dict[str, int]:
    """Read `lists`/classInd.txt as class name -> label, numbered from 0.

    Raises:
        InputError: the file is missing, or a line is not "<number from 1> <ClassName>".
    """
    classes: dict[str, int] = {}
    for location, line in _lines(lists / "classInd.txt"):
        number, _, name = line.partition(" ")
        if not number.isdigit() or int(number) < 1 or not name.strip():
            raise InputError(f"{location}: expected '<number from 1> <ClassName>', got {line!r}")
        classes[name.strip()] = int(number) - 1
    return classes


def read_lists(lists: Path, split: int) -> tuple[Video, ...]:
    """Read the lists of split 1, 2 or 3: all videos, train before test, with paths relative to UCF-101/.

    Args:
        lists: the folder ucfTrainTestlist/.
        split: 1, 2 or 3.

    Raises:
        InputError: the split does not exist, a list file is missing, a line does not match the class index, or a video
            or a group of videos is on both sides of the split.
    """
    if split not in (1, 2, 3):
        raise InputError(f"UCF101 has splits 1, 2 and 3; got {split}")
    classes = {name.casefold(): (name, label) for name, label in read_classes(lists).items()}
    sides: tuple[Side, ...] = ("train", "test")
    videos = tuple(
        _listed_video(location, line, side, classes)
        for side in sides
        for location, line in _lines(lists / f"{side}list{split:02d}.txt")
    )
    _require_separate_sides(videos, f"{lists}: trainlist{split:02d}.txt and testlist{split:02d}.txt")
    return videos


def read_split(root: Path, split: int) -> Split:
    """Find the videos of split 1, 2 or 3 on disk; partial copies of the dataset are supported.

    Labels are the official ones; `Split.compact_labels` renumbers them without the gaps of missing classes.

    Args:
        root: folder that contains UCF-101/ and ucfTrainTestlist/.
        split: 1, 2 or 3.

    Raises:
        InputError: a folder or list is missing, or one side of the split has no video on disk.
    """
    videos_dir, lists = root / "UCF-101", root / "ucfTrainTestlist"
    for folder in (root, videos_dir, lists):
        if not folder.is_dir():
            raise InputError(f"no folder {folder}: {_EXPECTED}")
    on_disk = {folder.name.casefold(): _files_by_name(folder) for folder in videos_dir.iterdir() if folder.is_dir()}
    videos: list[Video] = []
    missing: list[str] = []
    for video in read_lists(lists, split):
        directory, name = video.path.parts
        path = on_disk.get(directory.casefold(), {}).get(name.casefold())
        if path is None:
            missing.append(video.path.as_posix())
        else:
            videos.append(replace(video, path=path))
    for side in ("train", "test"):
        if not any(video.side == side for video in videos):
            raise InputError(f"{videos_dir} contains none of the {side} videos of split {split}: {_EXPECTED}")
    if missing:
        log.info("split %d: %d videos on disk, %d listed videos missing", split, len(videos), len(missing))
    return Split(number=split, videos=tuple(videos), missing=tuple(missing))


def _listed_video(location: str, line: str, side: Side, classes: dict[str, tuple[str, int]]) -> Video:
    """Parse one line of a train or test list; `classes` maps case-folded names to (name, label)."""
    listed, _, number = line.partition(" ")
    directory, _, name = listed.partition("/")
    match = _NAME.fullmatch(name)
    class_entry = classes.get(directory.casefold())
    if match is None or class_entry is None:
        raise InputError(
            f"{location}: expected '<Class>/v_<Class>_gGG_cCC.avi' of a class in classInd.txt, got {line!r}"
        )
    class_name, label = class_entry
    if side == "train" and number.strip() != str(label + 1):
        raise InputError(
            f"{location}: classInd.txt gives {class_name} the number {label + 1}, but the list has {number.strip()!r}"
        )
    return Video(path=Path(listed), label=label, class_name=class_name, group=int(match["group"]), side=side)


def _require_separate_sides(videos: Sequence[Video], origin: str) -> None:
    """Raise InputError that names the videos, or else the groups, on both sides of a split.

    Clips of one group show one scene: the accuracy would then measure how well training clips are remembered.
    """
    for what, name in (
        ("videos", lambda video: video.path.as_posix()),
        ("groups", lambda video: f"{video.class_name} g{video.group:02d}"),
    ):
        train, test = ({name(v).casefold(): name(v) for v in videos if v.side == side} for side in ("train", "test"))
        both = [train[key] for key in sorted(train.keys() & test.keys())]
        if both:
            named = ", ".join(both[:MAX_NAMED]) + (f" and {len(both) - MAX_NAMED} more" * (len(both) > MAX_NAMED))
            raise InputError(f"{origin}: {what} on both sides of the split: {named}; remove them from one of the lists")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ("file:line" for messages, stripped line) for each line that is not blank."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"no list file {path}: {_EXPECTED}") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"{path}:{number}", line.strip()


def _files_by_name(folder: Path) -> dict[str, Path]:
    """Return the files of a folder by case-folded name."""
    return {path.name.casefold(): path for path in sorted(folder.iterdir())}
