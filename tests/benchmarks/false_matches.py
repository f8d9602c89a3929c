"""Estimate how many scenes near-duplicate detection takes for copies: `make bench-duplicates`. Prints a table.

Random crops of clips stand in for the many scenes there are not: squares of three quarters to all of a clip, half
mirrored. Distances of the pictures of unlike scenes are counted, and a fit to their tail is extrapolated to a million
clips. Asserts nothing. Needs the folder `shared`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np

from vgan.records import Clip
from vgan.video.clip_extraction import extract_clips
from vgan.video.config import ClipSpec, VideoConfig
from vgan.video.decoding.decode import frames
from vgan.video.fingerprint import fingerprint, fingerprint_words, thumbnails
from vgan.video.quality_filters import first_violation

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CONFIG = VideoConfig(clip=ClipSpec(stride=96))
CROPS, QUERIES = 60, 4000  # crops of each clip, and how many of all are compared with all
CORPUS = 1_000_000


def clips() -> Iterator[tuple[str, np.ndarray]]:
    """Yield the scene and the frames (T, H, W, 3) uint8 of each clip that the filters accept.

    Clips of one scene share its name: a group of UCF101, one film at two qualities.
    """
    paths = sorted(DATA.glob("ucf101/UCF-101/*/*.avi"))[::4]
    paths += sorted(p for name in ("generic", "shaky") for p in DATA.glob(f"{name}/*/*") if p.suffix != ".txt")
    for path in paths:
        scene = re.sub(r"_c\d+\.avi$|_(distorted|pristine)\.mp4$", "", path.relative_to(DATA).as_posix())
        for result in extract_clips(frames(path, CONFIG.decode), CONFIG):
            if isinstance(result, Clip) and first_violation(result.evidence, CONFIG.filters) is None:
                yield scene, result.frames


def crops(clip: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield CROPS squares (4, 32, 32, 3) uint8 of a clip, with the means that the fingerprint uses."""
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


def main() -> None:
    """Measure and print."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    kept = list(clips())
    scene = np.repeat(np.unique([name for name, _ in kept], return_inverse=True)[1], CROPS)
    pictures = [fingerprint(thumbnails(crop)) for _, clip in kept for crop in crops(clip, rng)]
    words = fingerprint_words(pictures)
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
    print(f"\nFalse matches of a clip by its pictures among {CORPUS:,}, expected from {num_pairs:,} pairs of crops of")
    print(f"{len(kept)} clips; half of the others come before it and can drop it. Fits: log count at 10 to 20 bits.")
    print(f"{'bits':>4}{'pairs':>8}{'counted':>10}{'line':>10}{'parabola':>10}")
    for bound in range(2, 13):
        counted = counts[: bound + 1].sum()
        row = [counted / num_pairs, *(fit(bound) for fit in fits)]
        print(f"{bound:>4}{counted:>8}" + "".join(f"{CORPUS * rate:>10.2g}" for rate in row))


if __name__ == "__main__":
    main()
