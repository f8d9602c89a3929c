"""Windows kept by each stabilizer and filter preset, and how steady they are. Prints tables; asserts nothing.

Clips are judged by two measures that share nothing with the stabilizers: points tracked in the clip, and dense optical
flow (DIS). A clip is good up to GOOD_PX of global motion per frame (RMS of the corners, pixels at 128 px), improved if
that is at most half of the motion before, else bad. The tracker ignores pixels that are equal in two frames of a warped
clip (fill), but not of an unwarped one: there an encoder repeats the background, and only moving people would be left.

Bounds were chosen on the first half of the groups, tables are of the second. Needs the folder `shared`. STEP=4 takes
every fourth video (default: every second); SHEETS=FOLDER writes contact sheets of clips that the earlier bounds
rejected, and of clips with burnt-in graphics.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.append(str(Path(__file__).resolve().parents[1] / "vgan" / "video"))

import cv2
import numpy as np
from moving_pictures import tracked_jitter_px

from vgan.errors import VideoError
from vgan.records import Clip, ClipScores, Reject
from vgan.video import letterbox, prescreen
from vgan.video.clip_extraction import extract_clips, iter_windows
from vgan.video.config import FILTER_PRESETS, ClipSpec, DecodeConfig, FilterConfig, StabilizeConfig, VideoConfig
from vgan.video.decoding.decode import frames
from vgan.video.quality_filters import first_violation
from vgan.video.stabilization.geometry import IDENTITY
from vgan.video.stabilization.rendering import downscale, render
from vgan.video.stabilization.stabilize import stabilize

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
GOOD_PX = 0.5
SIZE = 128
STABILIZERS = ("adaptive", "paper", "reference")
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
FRAMES = 6  # of a clip in a contact sheet
SHEETS = os.environ.get("SHEETS")
STEP = int(os.environ.get("STEP", "2"))


@dataclass(frozen=True)
class Outcome:
    """Result of one window by one stabilizer: its scores, or None, and a label by each judge."""

    scores: ClipScores | None
    labels: tuple[str, str]  # by the tracker, by dense flow: good, improved, bad, or none
    frames: np.ndarray | None = None  # (FRAMES, SIZE, SIZE, 3) uint8, of the contact sheet


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
    """Yield windows (32, H, W, 3) uint8 that pass the prescreen, cropped."""
    config = VideoConfig(clip=ClipSpec(size=SIZE, fps=fps), decode=DecodeConfig(short_side=240))
    found = [w for w in iter_windows(frames(path, config.decode), config) if not isinstance(w, Reject)]
    for i in sorted({int(i) for i in np.linspace(0, len(found) - 1, limit)} if found else ()):
        pixels = np.stack([frame.image for frame in found[i][1]])
        pixels = letterbox.crop(pixels, letterbox.detect_bars(pixels))
        try:
            prescreen.reject_window(prescreen.measure_window(pixels), config.prescreen)
        except VideoError:
            continue
        if min(pixels.shape[1:3]) >= SIZE // 2:
            yield pixels


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
    """Stabilize a window by each stabilizer and judge the results.

    The stabilizer `reference` takes the frames as they are, as the original script does; the others at SIZE.
    """
    original, window = window, downscale(window, SIZE)
    unmoved, covered = render(window, np.tile(IDENTITY, (len(window), 1, 1)), SIZE)
    before = tracked_jitter_px(unmoved, covered), dense_motion_px(unmoved)
    results = {}
    for preset in STABILIZERS:
        try:
            clip, scores = stabilize(
                original if preset == "reference" else window, StabilizeConfig(preset=preset), SIZE
            )
        except VideoError:
            results[preset] = Outcome(None, ("none", "none"))
            continue
        # Of a warped clip, pixels equal in two frames are fill; of one that was not warped, none are.
        covered = None if scores.stabilized else np.ones(clip.shape[:3], bool)
        after = tracked_jitter_px(clip, covered), dense_motion_px(clip)
        results[preset] = Outcome(scores, tuple(map(label, after, before)), clip[:: len(clip) // FRAMES])
    return results


def print_table(results: dict[str, list[dict[str, Outcome]]]) -> None:
    """Print windows kept and their labels, good/improved/bad, by both judges."""
    print(
        "kept of windows, and (good/improved/bad) by the tracker | by dense flow; possible: good or improved by any of "
        "the stabilizers, by the tracker | by both judges"
    )
    print(f"{'set':<16}{'windows':>8}{'possible':>11}{'of them kept':>15}", end="")
    print("".join(f"{f'{stabilizer}, {bounds}':>36}" for stabilizer, bounds in FILTERS))
    everything = [window for items in results.values() for window in items]
    for name, items in [*results.items(), ("all", everything)]:
        possible = [[w for w in items if any(_is_steady(o, judges) for o in w.values())] for judges in (1, 2)]
        kept = [[w for w in each if _is_kept(w["adaptive"], FILTERS["adaptive", "strict"])] for each in possible]
        shares = " | ".join(f"{len(k) / max(1, len(p)):.0%}" for k, p in zip(kept, possible, strict=True))
        print(f"{name:<16}{len(items):>8}{' | '.join(str(len(p)) for p in possible):>11}{shares:>15}", end="")
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


def _is_steady(outcome: Outcome, judges: int) -> bool:
    """Return True if the window was registered and its clip is good or improved by the first `judges` judges."""
    is_registered = outcome.scores is not None and outcome.scores.registration != "failed"
    return is_registered and all(label in ("good", "improved") for label in outcome.labels[:judges])


def write_sheet(name: str, rows: list[np.ndarray]) -> None:
    """Write frames of clips, a clip (FRAMES, SIZE, SIZE, 3) per row, to SHEETS/NAME.png."""
    if SHEETS and rows:
        Path(SHEETS).mkdir(parents=True, exist_ok=True)
        sheet = np.concatenate([np.concatenate(list(row[:FRAMES]), axis=1) for row in rows])
        cv2.imwrite(str(Path(SHEETS) / f"{name}.png"), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))


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
        sheet = []
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
            if not violation:
                sheet.append(clip[:: len(clip) // FRAMES])
        write_sheet(f"graphics_{stabilizer}", sheet)
        print(
            f"  {stabilizer:<10}" + ", ".join(f"{counts[key]} {key}" for key in ("good", "improved", "bad", "rejected"))
        )


def print_speed() -> None:
    """Print processor time of clip extraction by both stabilizers, frames decoded before, one video after another."""
    configs = {
        "paper": VideoConfig(stabilize=StabilizeConfig(preset="paper"), filters=EARLIER),
        "adaptive": VideoConfig(),
    }
    print("\nProcessor time of clip extraction with cuts and scores, without decoding; clips that pass the filters")
    print(f"{'set':<16}{'frames':>8}{'stabilizer':>12}{'frames/s':>10}{'clips':>7}{'ms per clip':>13}")
    for pattern, step in (("ucf101_five/UCF-101/*/*.avi", 26), ("generic/*/*.mp4", 1)):
        seconds, clips, num_frames = Counter[str](), Counter[str](), 0
        for path in sorted(DATA.glob(pattern))[::step]:
            try:
                decoded = list(islice(frames(path, DecodeConfig()), 400))
            except VideoError:
                continue
            num_frames += len(decoded)
            for name, config in configs.items():
                start = time.process_time()
                found = [c for c in extract_clips(iter(decoded), config) if isinstance(c, Clip)]
                seconds[name] += time.process_time() - start
                clips[name] += sum(first_violation(c.evidence, config.filters) is None for c in found)
        for name in configs:
            print(
                f"{pattern.split('/')[0]:<16}{num_frames:>8}{name:>12}{num_frames / seconds[name]:>10.0f}"
                f"{clips[name]:>7}{1000 * seconds[name] / max(1, clips[name]):>13.0f}"
            )


def main() -> None:
    """Measure and print."""
    cv2.setNumThreads(1)
    results: dict[str, list[dict[str, Outcome]]] = defaultdict(list)
    moving = []
    for name, path, fps, limit in videos():
        for window in windows(path, fps, limit):
            result = outcomes(window)
            window = downscale(window, SIZE)
            results[name].append(result)
            scores = result["adaptive"].scores
            is_moving = scores.jitter_px > 0.8 and scores.filled_fraction < 0.5
            if is_moving and result["adaptive"].labels[0] == "good" and _is_kept(result["adaptive"], FilterConfig()):
                moving.append(window)
    print_table(results)
    for name, items in results.items():
        new = [w["adaptive"] for w in items if not _is_kept(w["paper"], EARLIER)]
        write_sheet(f"new_{name}", [o.frames for o in new if o.frames is not None and _is_kept(o, FilterConfig())])
    print_graphics(moving[::2])
    print_speed()


if __name__ == "__main__":
    main()
