"""A drawn action set in UCF101's exact layout: real .avi files whose classes differ by motion alone.

Clip c of group g begins with the same picture and shakes the same way in every class, so the first frame tells
nothing and only the motion names the class. As in UCF101, the clips of a group share their appearance and no group is
on both sides of a split.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vgan.drawn.clips import CLASSES, draw_clip
from vgan.video.encode import write_avi

log = logging.getLogger(__name__)

DEFAULT_CLASSES = ("Bounce", "Circle", "Grow", "SlideLeft", "Spin")
SPLITS = (1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class DrawnSet:
    """What `draw_action_set` wrote."""

    root: Path  # holds UCF-101/ and ucfTrainTestlist/
    classes: tuple[str, ...]
    num_videos: int
    test_groups: tuple[tuple[int, ...], ...]  # of splits 1, 2 and 3


def draw_action_set(
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
) -> DrawnSet:
    """Write `folder`/UCF-101/<Class>/v_<Class>_gGG_cCC.avi and `folder`/ucfTrainTestlist/ in the official format.

    With 25 groups the test groups are the official ones: 01-07, 08-14 and 15-21. With fewer, each split tests the same
    share (7 of 25, rounded, at least one group) and the three blocks still follow each other.

    Args:
        classes: any of `CLASSES`; numbered from 1 in alphabetical order, as in UCF101.
        size: height and width, pixels.
        shake_px: camera movement between neighbouring frames, RMS pixels; 0 holds the camera still.
        progress: called with videos written and videos in all, after each video.

    Raises:
        ValueError: unknown or repeated class, fewer than 3 groups, or no video in a group.
    """
    names = tuple(sorted(classes))
    unknown = sorted(set(names) - set(CLASSES))
    if unknown or not names or len(set(names)) != len(names):
        raise ValueError(f"classes must be different names out of {', '.join(CLASSES)}; got {list(classes)}")
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
    log.info("drew %d videos of %d classes in %s", len(videos), len(names), folder)
    if groups != 25:
        log.info("%d groups instead of 25: splits test groups %s", groups, test_groups)
    return DrawnSet(root=folder, classes=names, num_videos=len(videos), test_groups=test_groups)


def split_test_groups(groups: int, split: int) -> tuple[int, ...]:
    """Groups, counted from 1, on the test side of split 1, 2 or 3: UCF101's blocks of 7 out of 25, scaled to `groups`.

    Raises:
        ValueError: fewer than 3 groups, more than 99, or no such split.
    """
    if not 3 <= groups <= 99:
        raise ValueError(f"groups must be 3 to 99 so that three splits can each test their own, got {groups}")
    if split not in SPLITS:
        raise ValueError(f"split must be 1, 2 or 3; got {split}")
    block = max(1, round(groups * 7 / 25))
    return tuple(range((split - 1) * block + 1, split * block + 1))


def _listed_name(class_name: str, group: int, index: int) -> str:
    return f"{class_name}/v_{class_name}_g{group:02d}_c{index:02d}.avi"


def _write_lists(
    folder: Path, names: tuple[str, ...], videos: list[tuple[str, int, int]], test_groups: tuple[tuple[int, ...], ...]
) -> None:
    """The official text files: CRLF, labels from 1 in the train lists and none in the test lists."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = {name: label for label, name in enumerate(names, start=1)}
    _write_crlf(folder / "classInd.txt", [f"{label} {name}" for name, label in labels.items()])
    for split, held_out in zip(SPLITS, test_groups, strict=True):
        train = [f"{_listed_name(*video)} {labels[video[0]]}" for video in videos if video[1] not in held_out]
        test = [_listed_name(*video) for video in videos if video[1] in held_out]
        _write_crlf(folder / f"trainlist{split:02d}.txt", train)
        _write_crlf(folder / f"testlist{split:02d}.txt", test)


def _write_crlf(path: Path, lines: list[str]) -> None:
    path.write_bytes("".join(f"{line}\r\n" for line in lines).encode("ascii"))
