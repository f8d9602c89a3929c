"""UCF101's official files: class index, three train/test splits, and the videos of a split on disk.

The lists end lines with CRLF and count classes from 1; test lists carry no label, so every label comes from the
directory in the line. One class is spelled two ways (directory HandstandPushups, files v_HandStandPushups_*, and some
copies differ), so directories and files are found whatever their case.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vgan.errors import BadInput

log = logging.getLogger(__name__)

Side = Literal["train", "test"]

_NAME = re.compile(r"v_\w+_g(?P<group>\d+)_c\d+\.avi", re.IGNORECASE)
_EXPECTED = "expected a folder that holds UCF-101/<Class>/*.avi and ucfTrainTestlist/*.txt"


@dataclass(frozen=True, kw_only=True)
class Video:
    """One line of a split's lists."""

    path: Path  # on disk; relative to UCF-101/ where only the lists were read
    label: int  # the official class number minus 1, so 0 to 100
    class_name: str  # as classInd.txt spells it
    group: int  # clips of one group were cut from the same source video
    side: Side


@dataclass(frozen=True, kw_only=True)
class Split:
    """The videos of a split that are on disk, and the listed ones that are not."""

    number: int
    videos: tuple[Video, ...]
    missing: tuple[str, ...]  # as listed; videos and missing together are every line of the two lists

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes on disk, in official order."""
        return tuple(dict(sorted((video.label, video.class_name) for video in self.videos)).values())

    @property
    def compact_labels(self) -> dict[int, int]:
        """Official labels on disk -> 0..K-1 in official order; the identity for a whole copy."""
        present = sorted({video.label for video in self.videos})
        return {label: position for position, label in enumerate(present)}


def read_classes(lists: Path) -> dict[str, int]:
    """Class name -> label from 0 of `lists`/classInd.txt.

    Raises:
        BadInput: the file is missing, or a line is not "<number from 1> <ClassName>".
    """
    classes: dict[str, int] = {}
    for where, line in _lines(lists / "classInd.txt"):
        number, _, name = line.partition(" ")
        if not number.isdigit() or int(number) < 1 or not name.strip():
            raise BadInput(f"{where}: expected '<number from 1> <ClassName>', got {line!r}")
        classes[name.strip()] = int(number) - 1
    return classes


def read_lists(lists: Path, split: int) -> tuple[Video, ...]:
    """Every video that split 1, 2 or 3 lists, train before test, whether on disk or not; paths relative to UCF-101/.

    Raises:
        BadInput: no such split, a list file is missing, or a line does not fit the class index.
    """
    if split not in (1, 2, 3):
        raise BadInput(f"UCF101 has splits 1, 2 and 3; got {split}")
    classes = {name.casefold(): (name, label) for name, label in read_classes(lists).items()}
    sides: tuple[Side, ...] = ("train", "test")
    return tuple(
        _listed_video(where, line, side, classes)
        for side in sides
        for where, line in _lines(lists / f"{side}list{split:02d}.txt")
    )


def read_split(root: Path, split: int) -> Split:
    """The videos of split 1, 2 or 3 under `root`, which holds UCF-101/ and ucfTrainTestlist/. Partial copies work.

    Labels stay the official ones; `Split.compact_labels` closes the gaps that absent classes leave.

    Raises:
        BadInput: a folder or list is missing, or one side of the split has no video on disk.
    """
    videos_dir, lists = root / "UCF-101", root / "ucfTrainTestlist"
    for folder in (root, videos_dir, lists):
        if not folder.is_dir():
            raise BadInput(f"no folder {folder}: {_EXPECTED}")
    on_disk = {folder.name.casefold(): _files_by_name(folder) for folder in videos_dir.iterdir() if folder.is_dir()}
    found: list[Video] = []
    missing: list[str] = []
    for video in read_lists(lists, split):
        directory, name = video.path.parts
        path = on_disk.get(directory.casefold(), {}).get(name.casefold())
        if path is None:
            missing.append(video.path.as_posix())
        else:
            found.append(replace(video, path=path))
    for side in ("train", "test"):
        if not any(video.side == side for video in found):
            raise BadInput(f"{videos_dir} holds none of the {side} videos of split {split}: {_EXPECTED}")
    if missing:
        log.info("split %d: %d videos on disk, %d listed ones missing", split, len(found), len(missing))
    return Split(number=split, videos=tuple(found), missing=tuple(missing))


def _listed_video(where: str, line: str, side: Side, classes: dict[str, tuple[str, int]]) -> Video:
    listed, _, number = line.partition(" ")
    directory, _, name = listed.partition("/")
    match = _NAME.fullmatch(name)
    known = classes.get(directory.casefold())
    if match is None or known is None:
        raise BadInput(f"{where}: expected '<Class>/v_<Class>_gGG_cCC.avi' of a class in classInd.txt, got {line!r}")
    class_name, label = known
    if side == "train" and number.strip() != str(label + 1):
        raise BadInput(f"{where}: classInd.txt numbers {class_name} {label + 1}, the list says {number.strip()!r}")
    return Video(path=Path(listed), label=label, class_name=class_name, group=int(match["group"]), side=side)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Lines that are not blank, without their CRLF, each with "file:line" for messages."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"no list file {path}: {_EXPECTED}") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"{path}:{number}", line.strip()


def _files_by_name(folder: Path) -> dict[str, Path]:
    return {path.name.casefold(): path for path in sorted(folder.iterdir())}
