"""Synthetic action set in UCF101's exact layout: .avi files of classes that differ by motion only.

Clip c of group g has the same first frame and the same camera shake in every class, so the class can be recognized from
the object's motion only. As in UCF101, the clips of a group share their appearance and no group is on both sides of a
split.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vgan.synthetic.clips import CLASSES, draw_clip
from vgan.video.encode import write_avi

log = logging.getLogger(__name__)

DEFAULT_CLASSES = ("Bounce", "Circle", "Grow", "SlideLeft", "Spin")
SPLITS = (1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class SyntheticDataset:
    """Files and splits written by `make_action_set`."""

    root: Path  # contains UCF-101/ and ucfTrainTestlist/
    classes: tuple[str, ...]
    num_videos: int
    test_groups: tuple[tuple[int, ...], ...]  # test groups of splits 1, 2 and 3


def make_action_set(
    folder: Path,
    classes: Sequence[str] = DEFAULT_CLASSES,
    *,
    groups: int = 25,
    videos_per_group: int = 1,
    seed: int = 0,
    num_frames: int = 40,
    size: tuple[int, int] = (240, 320),
    fps: float = 25.0,
    shake_px: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> SyntheticDataset:
    """Write `folder`/UCF-101/<Class>/v_<Class>_gGG_cCC.avi and `folder`/ucfTrainTestlist/ in the official format.

    With 25 groups the test groups are the official ones: 01-07, 08-14 and 15-21. Other numbers of groups keep the share
    per split (7 of 25, rounded, at least one group) and the three consecutive blocks.

    Args:
        folder: output folder, created if missing.
        classes: names from `CLASSES`; numbered from 1 in alphabetical order, as in UCF101.
        groups: number of groups per class, 3 to 99.
        videos_per_group: number of videos per group, 1 to 99.
        seed: seed of all drawings.
        num_frames: frames per video.
        size: height and width, pixels.
        fps: frames per second.
        shake_px: camera movement between adjacent frames, RMS pixels; 0 disables camera motion.
        progress: called after each video with the number of videos written and the total.

    Raises:
        ValueError: a class is unknown or repeated, or a number of groups or videos is out of range.
    """
    names = tuple(sorted(classes))
    unknown = sorted(set(names) - set(CLASSES))
    if unknown or not names or len(set(names)) != len(names):
        raise ValueError(f"classes must be distinct names from {', '.join(CLASSES)}; got {list(classes)}")
    if not 1 <= videos_per_group <= 99:
        raise ValueError(f"videos_per_group must be 1 to 99, got {videos_per_group}")
    test_groups = tuple(split_test_groups(groups, split) for split in SPLITS)
    videos = [(c, g, i) for c in names for g in range(1, groups + 1) for i in range(1, videos_per_group + 1)]
    for name in names:
        (folder / "UCF-101" / name).mkdir(parents=True, exist_ok=True)
    for done, (name, group, index) in enumerate(videos, start=1):
        clip = draw_clip(
            name, group=group, index=index, seed=seed, num_frames=num_frames, size=size, fps=fps, shake_px=shake_px
        )
        write_avi(clip.frames, folder / "UCF-101" / _listed_name(name, group, index), fps)
        if progress is not None:
            progress(done, len(videos))
    _write_lists(folder / "ucfTrainTestlist", names, videos, test_groups)
    log.info("wrote %d synthetic videos of %d classes to %s", len(videos), len(names), folder)
    if groups != 25:
        log.info("%d groups instead of 25: test groups of the splits are %s", groups, test_groups)
    return SyntheticDataset(root=folder, classes=names, num_videos=len(videos), test_groups=test_groups)


def split_test_groups(groups: int, split: int) -> tuple[int, ...]:
    """Return the test groups, numbered from 1, of a split: UCF101's blocks of 7 out of 25, scaled to `groups`.

    Args:
        groups: number of groups, 3 to 99.
        split: 1, 2 or 3.

    Raises:
        ValueError: `groups` or `split` is out of range.
    """
    if not 3 <= groups <= 99:
        raise ValueError(
            f"groups must be 3 to 99, so that each of the three splits has separate test groups, got {groups}"
        )
    if split not in SPLITS:
        raise ValueError(f"split must be 1, 2 or 3; got {split}")
    block = max(1, round(groups * 7 / 25))
    return tuple(range((split - 1) * block + 1, split * block + 1))


def _listed_name(class_name: str, group: int, index: int) -> str:
    """Return a video's path relative to UCF-101/, as in the lists."""
    return f"{class_name}/v_{class_name}_g{group:02d}_c{index:02d}.avi"


def _write_lists(
    folder: Path, names: tuple[str, ...], videos: list[tuple[str, int, int]], test_groups: tuple[tuple[int, ...], ...]
) -> None:
    """Write the lists in the official format: CRLF, labels from 1 in train lists and none in test lists."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = {name: label for label, name in enumerate(names, start=1)}
    _write_crlf(folder / "classInd.txt", [f"{label} {name}" for name, label in labels.items()])
    for split, split_groups in zip(SPLITS, test_groups, strict=True):
        train = [f"{_listed_name(*video)} {labels[video[0]]}" for video in videos if video[1] not in split_groups]
        test = [_listed_name(*video) for video in videos if video[1] in split_groups]
        _write_crlf(folder / f"trainlist{split:02d}.txt", train)
        _write_crlf(folder / f"testlist{split:02d}.txt", test)


def _write_crlf(path: Path, lines: list[str]) -> None:
    """Write lines of ASCII text that end in CRLF."""
    path.write_bytes("".join(f"{line}\r\n" for line in lines).encode("ascii"))
