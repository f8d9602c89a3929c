"""What the bounds on clips' scores are based on: good clips lost, bad ones caught, false matches of fingerprints.

A clip is judged by a tracker that shares nothing with the stabilizer: bad if it still moves by more than BAD_PX a frame
(RMS of the corners) and by more than half of what it did before; good up to BAD_PX; the rest has been improved. The
tracker errs too: of 14 clips called bad that the bounds keep, 6 were steady to the eye. Only every third window
of all, of every fourth UCF101 video is seen, to end in time. Prints tables; asserts nothing. Needs the folder `shared`.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.append(str(Path(__file__).resolve().parents[1] / "vgan" / "video"))

import cv2
import numpy as np
from moving_pictures import tracked_jitter_px

from vgan.records import Clip, ClipScores, Reject
from vgan.video.clip_extraction import extract_clips
from vgan.video.config import ClipSpec, DecodeConfig, FilterConfig, StabilizeConfig, VideoConfig
from vgan.video.decoding.decode import frames
from vgan.video.fingerprint import fingerprint, fingerprint_words, thumbnails
from vgan.video.quality_filters import first_violation

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
# The tracker needs clips of 128 px, also of letterboxed videos: decoded larger, they are reduced after the crop.
CONFIG = VideoConfig(clip=ClipSpec(size=128, stride=96), decode=DecodeConfig(short_side=240))
LOOSE = FilterConfig(max_residual_px=1.5, min_inlier_ratio=0.3)  # bounds that hardly ever act
BAD_PX = 0.5
RESIDUALS, INLIERS = (0.85, 0.9, 0.95, 1.0, 1.1, 1.5), (0.3, 0.5, 0.55, 0.6, 0.65)
CROPS, QUERIES = 60, 4000  # crops of each clip, and how many of all are compared with all
CORPUS = 1_000_000


@dataclass(frozen=True)
class Judged:
    """A finished clip with its scores and what the tracker says of it."""

    dataset: str
    source: str  # path below DATA
    evidence: ClipScores
    label: str  # good, improved, bad
    frames: np.ndarray  # (T, 128, 128, 3) uint8

    @property
    def held_out(self) -> bool:
        """Whether bounds were reported on this clip's video, not chosen on it."""
        return hashlib.sha256(self.source.encode()).digest()[0] % 2 == 1

    @property
    def scene(self) -> str:
        """Clips of one scene share it: UCF101's groups, and one film at two qualities."""
        return re.sub(r"_c\d+\.avi$|_(distorted|pristine)\.mp4$", "", self.source)


def paths() -> dict[str, list[Path]]:
    """The videos of each dataset."""
    return {
        "ucf101": sorted(DATA.glob("ucf101/UCF-101/*/*.avi"))[::4],
        "generic": sorted([*DATA.glob("generic/*/*.mp4"), *DATA.glob("generic/*/*.mpg")]),
        "shaky": sorted([*DATA.glob("shaky/*/*.mp4"), *DATA.glob("shaky/*/*.avi")]),
    }


def judged(dataset: str, path: Path) -> Iterator[Judged | Reject]:
    """Clips of a video with their labels; rejects as they are."""
    unsteady = {
        result.start_s: result.frames
        for result in extract_clips(
            frames(path, CONFIG.decode), replace(CONFIG, stabilize=StabilizeConfig(preset="off"))
        )
        if isinstance(result, Clip)
    }
    for result in extract_clips(frames(path, CONFIG.decode), CONFIG):
        if isinstance(result, Reject):
            yield result
            continue
        before, after = (tracked_jitter_px(clip) for clip in (unsteady[result.start_s], result.frames))
        label = "bad" if after > BAD_PX and after > before / 2 else "improved" if after > BAD_PX else "good"
        yield Judged(dataset, path.relative_to(DATA).as_posix(), result.evidence, label, result.frames)


def print_bounds(clips: list[Judged]) -> None:
    """Good and improved clips lost and bad ones caught by pairs of bounds, the others loose."""
    for half, held_out in (("chosen on", False), ("held out", True)):
        seen = [clip for clip in clips if clip.held_out == held_out]
        totals = {label: sum(c.label == label for c in seen) for label in ("good", "improved", "bad")}
        print(f"\nVideos that bounds were {half}: refused of {totals} (good/improved/bad)")
        print("residual  inliers:" + "".join(f"{inliers:>12}" for inliers in INLIERS))
        for residual in RESIDUALS:
            print(f"{residual:>8}          ", end="")
            for inliers in INLIERS:
                refused = [
                    clip.label
                    for clip in seen
                    if clip.evidence.residual_px > residual or clip.evidence.inlier_ratio < inliers
                ]
                print(f"{'/'.join(str(refused.count(label)) for label in totals):>12}", end="")
            print()


def print_single(clips: list[Judged]) -> None:
    """What each bound refuses that no other of today's does."""
    print("\nRefused by one of today's bounds alone (good/improved/bad)")
    seen = [clip for clip in clips if first_violation(clip.evidence, FilterConfig())]
    reasons = sorted({first_violation(clip.evidence, FilterConfig())[0] for clip in seen})
    for reason in reasons:
        alone = [clip.label for clip in seen if first_violation(clip.evidence, FilterConfig(disabled=[reason])) is None]
        print(f"{reason:<20}" + "/".join(str(alone.count(label)) for label in ("good", "improved", "bad")))


def print_yield(clips: list[Judged], num_rejects: dict[str, int]) -> None:
    """Windows that give a clip with loose bounds and with today's, and the share of bad ones among those."""
    print(f"\n{'windows kept':<12}{'all':>6}{'loose':>8}{'bad':>7}{'today':>8}{'bad':>7}")
    for dataset, missing in num_rejects.items():
        seen = [clip for clip in clips if clip.dataset == dataset]
        print(f"{dataset:<12}{len(seen) + missing:>6}", end="")
        for gates in (LOOSE, FilterConfig()):
            kept = [clip.label for clip in seen if first_violation(clip.evidence, gates) is None]
            print(f"{len(kept) / (len(seen) + missing):>8.1%}{kept.count('bad') / max(len(kept), 1):>7.1%}", end="")
        print()


def print_false_matches(clips: list[Judged]) -> None:
    """Matches expected among a million clips, from distances of random crops of unlike scenes and a fit to their tail.

    Crops stand in for the many scenes there are not: squares of three quarters to all of a clip, half of them mirrored.
    """
    kept = [clip for clip in clips if first_violation(clip.evidence, FilterConfig()) is None]
    scene = np.repeat(np.unique([clip.scene for clip in kept], return_inverse=True)[1], CROPS)
    rng = np.random.default_rng(0)
    words = np.stack([_words(crop) for clip in kept for crop in _crops(clip.frames, rng)])
    order = rng.permutation(len(words))
    words, scene = words[order], scene[order]
    counts, num_pairs = np.zeros(129, np.int64), 0
    for one, owner in zip(words[:QUERIES], scene[:QUERIES], strict=True):
        differing = np.bitwise_count(words ^ one).sum(1)[scene != owner]
        counts += np.bincount(differing, minlength=129)
        num_pairs += len(differing)
    bits = np.arange(129)
    fits: list[Callable[[int], float]] = []
    for degree in (1, 2):
        used = (bits >= 10) & (bits <= 20) & (counts > 0)
        law = np.polyfit(bits[used], np.log(counts[used] / num_pairs), degree, w=np.sqrt(counts[used]))
        fits.append(lambda bound, law=law: float(np.exp(np.polyval(law, np.arange(bound + 1))).sum()))
    print(f"\nFalse matches of a clip among {CORPUS:,} expected from {num_pairs:,} pairs ({len(words)} crops); half of")
    print("the others come before it and can drop it. Fits: log count at 10 to 20 bits as a line, as a parabola.")
    print(f"{'bits':>4}{'pairs':>8}{'seen':>10}{'line':>10}{'parabola':>10}")
    for bound in range(2, 13):
        seen = counts[: bound + 1].sum()
        row = [seen / num_pairs, *(fit(bound) for fit in fits)]
        print(f"{bound:>4}{seen:>8}" + "".join(f"{CORPUS * rate:>10.2g}" for rate in row))


def _crops(clip: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """CROPS squares (T, 32, 32, 3) of a clip; only the first and last quarter and a few frames between are looked at.

    The fingerprint uses no more than means over those.
    """
    quarter = len(clip) // 4
    means = [part.mean(0) for part in (clip[:quarter], clip[quarter:-quarter], clip[-quarter:])]
    side = clip.shape[1]
    for _ in range(CROPS):
        length = int(rng.integers(3 * side // 4, side + 1))
        top, left = rng.integers(0, side - length + 1, 2)
        flip = rng.choice([-1, 1])
        cut = [mean[top : top + length, left : left + length][:, ::flip] for mean in means]
        small = [cv2.resize(np.ascontiguousarray(c), (32, 32), interpolation=cv2.INTER_AREA) for c in cut]
        # A quarter, a half, a quarter: four frames have the same means as all.
        yield np.rint(np.stack([small[0], small[1], small[1], small[2]])).astype(np.uint8)


def _words(crop: np.ndarray) -> np.ndarray:
    return fingerprint_words([fingerprint(thumbnails(crop))])[0]


def main() -> None:
    """Measure and print."""
    cv2.setNumThreads(1)
    clips: list[Judged] = []
    num_rejects: dict[str, int] = {}
    for dataset, files in paths().items():
        results = [result for path in files for result in judged(dataset, path)]
        clips += [result for result in results if isinstance(result, Judged)]
        # A shot without a window is no window that is lost.
        num_rejects[dataset] = sum(isinstance(r, Reject) and r.reason != "too_short" for r in results)
    print_bounds(clips)
    print_single(clips)
    print_yield(clips, num_rejects)
    print_false_matches(clips)


if __name__ == "__main__":
    main()
