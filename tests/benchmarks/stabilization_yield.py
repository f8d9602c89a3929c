"""Windows kept by each stabilizer and filter preset, and how steady they are. Prints tables; asserts nothing.

Clips are judged by two measures that share nothing with the stabilizers: points tracked in the clip, and dense optical
flow (DIS). A clip is good up to GOOD_PX of global motion per frame (RMS of the corners, pixels at 128 px), improved if
that is at most half of the motion before, else bad. The tracker ignores pixels that are equal in two frames of a warped
clip (fill), but not of an unwarped one: there an encoder repeats the background, and only moving people would be left.

Bounds were chosen on the first half of the groups, tables are of the second. Needs the folder `shared`.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.append(str(Path(__file__).resolve().parents[1] / "vgan" / "video"))

import cv2
import numpy as np
from moving_pictures import tracked_jitter_px

from vgan.errors import VideoError
from vgan.records import ClipScores, Reject
from vgan.video import letterbox, prescreen
from vgan.video.clip_extraction import _windows
from vgan.video.config import FILTER_PRESETS, ClipSpec, DecodeConfig, FilterConfig, StabilizeConfig, VideoConfig
from vgan.video.decoding.decode import frames
from vgan.video.quality_filters import first_violation
from vgan.video.stabilization.geometry import IDENTITY
from vgan.video.stabilization.rendering import downscale, render
from vgan.video.stabilization.stabilize import stabilize

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
GOOD_PX = 0.5
SIZE = 128
STABILIZERS = ("adaptive", "paper")
# Bounds of the preset strict before the clip's own motion was measured (stabilizer paper only).
EARLIER = FilterConfig(
    max_residual_motion_px=1000.0,
    min_agreement=0.0,
    max_distortion_px=1000.0,
    min_inlier_ratio=0.6,
    max_zoom=2.0,
    max_filled_fraction=0.5,
)
FILTERS = {
    ("paper", "earlier bounds"): EARLIER,
    ("adaptive", "strict"): FilterConfig(),
    ("adaptive", "paper"): FilterConfig(preset="paper", **FILTER_PRESETS["paper"]),
}
STEP = int(os.environ.get("STEP", "2"))  # every STEP-th video of a set


@dataclass(frozen=True)
class Outcome:
    """Result of one window by one stabilizer: its scores, or None, and a label by each judge."""

    scores: ClipScores | None
    labels: tuple[str, str]  # by the tracker, by dense flow: good, improved, bad, or none


def held_out(group: str) -> bool:
    """Return True for groups on which no bound was chosen."""
    return hashlib.sha256(group.encode()).digest()[0] % 2 == 1


def videos() -> Iterator[tuple[str, Path, float, int]]:
    """Yield set, path, frame rate and maximum number of windows of each video of the reported half."""
    for path in sorted(DATA.glob("ucf101_five/UCF-101/*/*"))[::STEP]:
        group = int(re.search(r"_g(\d+)_", path.name)[1])
        if group % 2 == 1:
            yield path.parent.name, path, 25.0, 2
    groups = dict(line.split("\t")[::2] for line in (DATA / "jhmdb/groups.tsv").read_text().splitlines()[1:])
    for path in sorted(DATA.glob("jhmdb/*/*.avi"))[::STEP]:
        if held_out(groups.get(str(path.relative_to(DATA / "jhmdb")), path.stem)):
            yield "jhmdb", path, 30.0, 1
    for name in ("shaky", "generic"):
        for path in sorted(p for p in DATA.glob(f"{name}/*/*") if p.suffix in (".avi", ".mp4", ".mpg")):
            if held_out(path.name):
                yield name, path, 25.0, 12


def windows(path: Path, fps: float, limit: int) -> Iterator[np.ndarray]:
    """Yield windows (32, H, W, 3) uint8 that pass the prescreen, cropped, short side at most SIZE."""
    config = VideoConfig(clip=ClipSpec(size=SIZE, fps=fps), decode=DecodeConfig(short_side=240))
    found = [w for w in _windows(frames(path, config.decode), config) if not isinstance(w, Reject)]
    for i in sorted({int(i) for i in np.linspace(0, len(found) - 1, limit)} if found else ()):
        pixels = np.stack([frame.image for frame in found[i][1]])
        pixels = letterbox.crop(pixels, letterbox.detect_bars(pixels))
        try:
            prescreen.reject_window(prescreen.measure_window(pixels), config.prescreen)
        except VideoError:
            continue
        if min(pixels.shape[1:3]) >= SIZE // 2:
            yield downscale(pixels, SIZE)


def dense_motion_px(clip: np.ndarray) -> float:
    """Return the RMS motion of the corners by the similarity that fits most of a dense flow, pixels at 128 px."""
    flow_of = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grays = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
    side = clip.shape[1]
    y, x = np.mgrid[4:side:6, 4:side:6]
    points = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)
    corners = np.array([[0, 0, 1], [side, 0, 1], [0, side, 1], [side, side, 1]]).T
    steps = []
    for before, after in pairwise(grays):
        if np.array_equal(before, after):
            continue
        flow = flow_of.calc(before, after, None)[y.ravel(), x.ravel()]
        affine, _ = cv2.estimateAffinePartial2D(points, points + flow, ransacReprojThreshold=GOOD_PX)
        if affine is not None:
            steps.append(((affine @ corners - corners[:2]) ** 2).sum(0).mean())
    return 128 / side * float(np.sqrt(np.mean(steps))) if steps else 0.0


def label(after_px: float, before_px: float) -> str:
    """Return good, improved or bad."""
    if not after_px > GOOD_PX:  # nothing to track: nothing moves
        return "good"
    return "improved" if after_px <= before_px / 2 else "bad"


def outcomes(window: np.ndarray) -> dict[str, Outcome]:
    """Stabilize a window by each stabilizer and judge the results."""
    unmoved, covered = render(window, np.tile(IDENTITY, (len(window), 1, 1)), SIZE)
    before = tracked_jitter_px(unmoved, covered), dense_motion_px(unmoved)
    results = {}
    for preset in STABILIZERS:
        try:
            clip, scores = stabilize(window, StabilizeConfig(preset=preset), SIZE)
        except VideoError:
            results[preset] = Outcome(None, ("none", "none"))
            continue
        # Of a warped clip, pixels equal in two frames are fill; of one that was not warped, none are.
        covered = None if scores.stabilized else np.ones(clip.shape[:3], bool)
        after = tracked_jitter_px(clip, covered), dense_motion_px(clip)
        results[preset] = Outcome(scores, tuple(map(label, after, before)))
    return results


def print_table(results: dict[str, list[dict[str, Outcome]]]) -> None:
    """Print windows kept and their labels, good/improved/bad, by both judges."""
    print(
        "kept of windows, and (good/improved/bad) by the tracker | by dense flow; 'possible': good or improved by any"
    )
    print(f"{'set':<16}{'windows':>8}{'possible':>9}{'of them kept':>13}", end="")
    print("".join(f"{f'{stabilizer}, {bounds}':>36}" for stabilizer, bounds in FILTERS))
    everything = [window for items in results.values() for window in items]
    for name, items in [*results.items(), ("all", everything)]:
        possible = [w for w in items if any(o.labels[0] in ("good", "improved") for o in w.values())]
        kept = [w for w in possible if _is_kept(w["adaptive"], FILTERS["adaptive", "strict"])]
        print(f"{name:<16}{len(items):>8}{len(possible):>9}{len(kept) / max(1, len(possible)):>13.0%}", end="")
        for (stabilizer, _), bounds in FILTERS.items():
            passing = [w[stabilizer] for w in items if _is_kept(w[stabilizer], bounds)]
            texts = []
            for judge in range(2):
                counts = Counter(o.labels[judge] for o in passing)
                texts.append("/".join(str(counts[each]) for each in ("good", "improved", "bad")))
            print(f"{f'{len(passing)} ({texts[0]} | {texts[1]})':>36}", end="")
        print(flush=True)


def _is_kept(outcome: Outcome, bounds: FilterConfig) -> bool:
    return outcome.scores is not None and first_violation(outcome.scores, bounds) is None


def with_graphics(window: np.ndarray) -> np.ndarray:
    """Draw an opaque lower third with text over all frames (T, H, W, 3)."""
    window = window.copy()
    height, width = window.shape[1:3]
    window[:, int(0.72 * height) :] = (20, 30, 90)
    for frame in window:
        position = (4, height - 18)
        cv2.putText(frame, "BREAKING NEWS", position, cv2.FONT_HERSHEY_SIMPLEX, width / 350, (255, 255, 255), 2)
        cv2.putText(frame, "live report", (4, height - 4), cv2.FONT_HERSHEY_SIMPLEX, width / 450, (255, 220, 0), 1)
    return window


def print_graphics(moving: list[np.ndarray]) -> None:
    """Print what becomes of moving scenes with burnt-in graphics; the scene above the graphics is judged."""
    print(f"\nOpaque lower third over {len(moving)} windows with a moving camera that strict keeps without it")
    for stabilizer, bounds in (("paper", EARLIER), ("adaptive", FilterConfig())):
        counts: Counter[str] = Counter()
        for window in moving:
            drawn = with_graphics(window)
            above = np.zeros((len(window), SIZE, SIZE), bool)
            above[:, : int(0.6 * SIZE)] = True
            before = tracked_jitter_px(render(drawn, np.tile(IDENTITY, (len(window), 1, 1)), SIZE)[0], above)
            try:
                clip, scores = stabilize(drawn, StabilizeConfig(preset=stabilizer), SIZE)
            except VideoError:
                counts["rejected"] += 1
                continue
            violation = first_violation(scores, bounds)
            counts["rejected" if violation else label(tracked_jitter_px(clip, above), before)] += 1
        print(
            f"  {stabilizer:<10}" + ", ".join(f"{counts[key]} {key}" for key in ("good", "improved", "bad", "rejected"))
        )


def main() -> None:
    """Measure and print."""
    cv2.setNumThreads(1)
    results: dict[str, list[dict[str, Outcome]]] = defaultdict(list)
    moving = []
    for name, path, fps, limit in videos():
        for window in windows(path, fps, limit):
            result = outcomes(window)
            results[name].append(result)
            scores = result["adaptive"].scores
            is_moving = scores.jitter_px > 0.8 and scores.filled_fraction < 0.5
            if is_moving and result["adaptive"].labels[0] == "good" and _is_kept(result["adaptive"], FilterConfig()):
                moving.append(window)
    print_table(results)
    print_graphics(moving[::2])


if __name__ == "__main__":
    main()
