"""What near-duplicate detection finds and what it drops wrongly: `make bench-duplicates`. Prints tables.

Copies of real videos are made (re-encoded, cropped, with a logo, a border, another speed, mirrored) and processed as
`prepare` does; other moments are clips of other videos of the same take (a group of UCF101 or JHMDB). "Before" compares
pictures alone, in the orientation they have, as revision 2 did. Bounds were chosen on the groups that `held_out`
excludes. Asserts nothing. Needs the folder `shared`.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import av
import cv2
import numpy as np

from vgan.records import Clip
from vgan.video.clip_extraction import extract_clips
from vgan.video.config import VideoConfig
from vgan.video.decoding.decode import frames
from vgan.video.fingerprint import (
    SIDE,
    fingerprint,
    fingerprint_words,
    motion_signs,
    motion_similarity,
    motion_words,
    near_duplicates,
    thumbnails,
)
from vgan.video.quality_filters import first_violation

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CONFIG = VideoConfig()
MAX_BITS, MIN_SIMILARITY = CONFIG.filters.max_duplicate_distance_bits, CONFIG.filters.min_duplicate_similarity
LENGTH = 100  # frames of a copy
OFFSET_S = 0.33  # a copy's clip may start so much earlier or later than the original's: a quarter of a clip
SAME = 0.7  # correlation of all pixels' changes from which two clips show the same moment


@dataclass(frozen=True)
class Made:
    """A clip that passes the filters, of an original video or of a copy of it."""

    video: str
    group: str
    kind: str  # "" for the original
    start_s: float  # on the original's clock
    gray: np.ndarray  # (T, 64, 64) float32
    before: np.ndarray  # fingerprint of the picture as it is, uint64 (2,)
    picture: np.ndarray  # of the picture in its canonical orientation
    motion: np.ndarray  # signs, uint32 (8,)


def held_out(group: str) -> bool:
    """Return True for 46 groups on which no bound was chosen; more would take longer."""
    number = int(hashlib.sha256(group.encode()).hexdigest(), 16)
    return number % 1000 >= 440 and number % (12 if group.startswith("jhmdb") else 3) == 1


def groups() -> dict[str, list[Path]]:
    """Videos by group."""
    found: dict[str, list[Path]] = {}
    for path in sorted(DATA.glob("ucf101_five/UCF-101/*/*.avi")):
        found.setdefault(path.name.rpartition("_c")[0], []).append(path)
    for line in (DATA / "jhmdb" / "groups.tsv").read_text().splitlines()[1:]:
        name, _, group = line.split("\t")
        if (DATA / "jhmdb" / name).is_file():
            found.setdefault(f"jhmdb/{group}", []).append(DATA / "jhmdb" / name)
    return found


# ---- copies: functions from frames (T, H, W, 3) uint8 to frames ----------------------------------------------------


def crop(share: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that cuts `share` of the picture off each side."""

    def cut(video: np.ndarray) -> np.ndarray:
        top, left = (round(share * length) for length in video.shape[1:3])
        return video[:, top : video.shape[1] - top, left : video.shape[2] - left]

    return cut


def reduce_size(video: np.ndarray) -> np.ndarray:
    """Reduce to 0.6 of the size."""
    return np.stack([cv2.resize(f, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA) for f in video])


def add_logo(video: np.ndarray) -> np.ndarray:
    """Add a channel's name on a patch, about 4 % of the picture."""
    marked, (height, width) = video.copy(), video.shape[1:3]
    patch = marked[:, height * 5 // 6 - 4 : height - 8, width * 3 // 5 : width - 10]
    patch[:] = (patch * 0.3 + np.array([230, 230, 40]) * 0.7).astype(np.uint8)
    for frame in marked:
        cv2.putText(
            frame, "CHANNEL", (width * 3 // 5 + 6, height - 16), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (20, 20, 160), 2
        )
    return marked


def frame_in(height: int, width: int, fill: int | None) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that fits the picture into a frame with bars of one gray value, or of its blurred self."""

    def fit(video: np.ndarray) -> np.ndarray:
        scale = min(height / video.shape[1], width / video.shape[2])
        inner_h, inner_w = round(video.shape[1] * scale), round(video.shape[2] * scale)
        top, left = (height - inner_h) // 2, (width - inner_w) // 2
        framed = np.full((len(video), height, width, 3), fill or 0, np.uint8)
        for outer, frame in zip(framed, video, strict=True):
            if fill is None:
                cover = max(height / frame.shape[0], width / frame.shape[1])
                big = cv2.resize(frame, (-int(-frame.shape[1] * cover // 1), -int(-frame.shape[0] * cover // 1)))
                y, x = (big.shape[0] - height) // 2, (big.shape[1] - width) // 2
                outer[:] = cv2.GaussianBlur(big[y : y + height, x : x + width], (0, 0), 12)
            outer[top : top + inner_h, left : left + inner_w] = cv2.resize(frame, (inner_w, inner_h))
        return framed

    return fit


def unchanged(video: np.ndarray) -> np.ndarray:
    """Return the frames themselves."""
    return video


# Name: change of the frames, H.264 crf, speed, frames cut off at the start.
KINDS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int, float, int]] = {
    "re-encoded, crf 28, 0.6 of the size": (reduce_size, 28, 1, 0),
    "re-encoded, crf 38": (unchanged, 38, 1, 0),
    "darker by a quarter": (lambda video: (video * 0.75).astype(np.uint8), 23, 1, 0),
    "mirrored": (lambda video: video[:, :, ::-1], 23, 1, 0),
    "black bars at the sides": (frame_in(240, 426, 0), 23, 1, 0),
    "black bars, portrait": (frame_in(426, 240, 0), 23, 1, 0),
    "white bars, portrait": (frame_in(426, 240, 255), 23, 1, 0),
    "blurred bars, portrait": (frame_in(426, 240, None), 23, 1, 0),
    "cropped by 1.5 %": (crop(0.015), 23, 1, 0),
    "cropped by 4 %": (crop(0.04), 23, 1, 0),
    "cropped by 8 %": (crop(0.08), 23, 1, 0),
    "logo": (add_logo, 23, 1, 0),
    "speed 0.9": (unchanged, 23, 0.9, 0),
    "speed 1.1": (unchanged, 23, 1.1, 0),
    "six frames later": (lambda video: video[6:], 23, 1, 6),
}


def read(path: Path) -> tuple[np.ndarray, float]:
    """Return the first LENGTH frames (T, H, W, 3) uint8 and the frame rate."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert stream.average_rate
        return np.stack([f.to_ndarray(format="rgb24") for f in islice(file.decode(stream), LENGTH)]), float(
            stream.average_rate
        )


def write(video: np.ndarray, path: Path, fps: float, crf: int) -> None:
    """Write frames as H.264; odd sides lose a line."""
    height, width = (length // 2 * 2 for length in video.shape[1:3])
    with av.open(str(path), "w") as file:
        options = {"crf": str(crf), "preset": "veryfast"}
        stream = file.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in video[:, :height, :width]:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        file.mux(stream.encode())


def clips_of(path: Path, video: str, group: str, kind: str = "", speed: float = 1, late_s: float = 0) -> Iterator[Made]:
    """Yield the clips of a file that pass the filters."""
    for result in extract_clips(frames(path, CONFIG.decode), CONFIG):
        if isinstance(result, Clip) and first_violation(result.evidence, CONFIG.filters) is None:
            gray = np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in result.frames])
            plain = np.stack([cv2.resize(f, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for f in gray])
            canonical = thumbnails(result.frames)
            yield Made(
                video,
                group,
                kind,
                result.start_s * speed + late_s,
                gray.astype(np.float32),
                fingerprint_words([fingerprint(plain.astype(np.float32))])[0],
                fingerprint_words([fingerprint(canonical)])[0],
                motion_words([motion_signs(canonical)])[0],
            )


def make_set() -> list[Made]:
    """Process all videos of the groups, and copies of the first video of each."""
    made: list[Made] = []
    chosen = {group: paths for group, paths in groups().items() if held_out(group)}
    for group, paths in chosen.items():
        for path in paths:
            made += clips_of(path, path.stem, group)
        first = paths[0]
        video, fps = read(first)
        with tempfile.TemporaryDirectory() as folder:
            for kind, (change, crf, speed, late) in KINDS.items():
                write(change(video), Path(folder) / "copy.mp4", fps * speed, crf)
                made += clips_of(Path(folder) / "copy.mp4", first.stem, group, kind, speed, late / fps)
    return made


# ---- tables --------------------------------------------------------------------------------------------------------


def dropped_before(a: Made, b: Made) -> bool:
    """Return the verdict of pictures alone, as they are."""
    return int(np.bitwise_count(a.before ^ b.before).sum()) <= MAX_BITS


def dropped_now(a: Made, b: Made) -> bool:
    """Return today's verdict."""
    alike = int(np.bitwise_count(a.picture ^ b.picture).sum()) <= MAX_BITS
    return alike and motion_similarity(a.motion[None], b.motion[None])[0] >= MIN_SIMILARITY


def same_moment(a: Made, b: Made) -> bool:
    """Compare the changes of all pixels, at all shifts by up to eight frames: a judge finer than the signs."""
    best = -1.0
    for shift in range(-8, 9):
        x, y = a.gray[max(0, shift) : 32 + min(0, shift)], b.gray[max(0, -shift) : 32 - max(0, shift)]
        x, y = x - x.mean(0), y - y.mean(0)
        best = max(best, float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum() + 1e-9)))
    return best >= SAME


def print_copies(made: list[Made]) -> None:
    """Print the share of copies that are found, by kind."""
    originals = [clip for clip in made if not clip.kind]
    print(f"\n{'copies: recall':<40}{'pairs':>6}{'before':>8}{'now':>6}")
    for kind in KINDS:
        pairs = [
            (copy, original)
            for copy in made
            if copy.kind == kind
            for original in originals
            if original.video == copy.video and abs(original.start_s - copy.start_s) < OFFSET_S
        ]
        found = [np.mean([rule(*pair) for pair in pairs]) for rule in (dropped_before, dropped_now)]
        print(f"{kind:<40}{len(pairs):>6}{found[0]:>8.2f}{found[1]:>6.2f}")


def print_takes(made: list[Made]) -> None:
    """Print how many other moments are dropped: pairs of clips, then clips and videos as `prepare` would."""
    originals = [clip for clip in made if not clip.kind]
    pairs = [(a, b) for n, a in enumerate(originals) for b in originals[:n] if a.video != b.video]
    print(f"\n{'pairs of clips of two videos':<40}{'pairs':>9}{'before':>8}{'now':>6}  of them the same moment")
    for name, of_take in (("of one take", True), ("of different takes", False)):
        chosen = [pair for pair in pairs if (pair[0].group == pair[1].group) == of_take]
        dropped = [[pair for pair in chosen if rule(*pair)] for rule in (dropped_before, dropped_now)]
        same = [sum(same_moment(*pair) for pair in found) for found in dropped]
        print(f"{name:<40}{len(chosen):>9}{len(dropped[0]):>8}{len(dropped[1]):>6}  {same[0]}, {same[1]}")
    sources = [clip.video for clip in originals]
    before = near_duplicates(np.stack([clip.before for clip in originals]), sources, MAX_BITS)
    motion = np.stack([clip.motion for clip in originals])
    now = near_duplicates(np.stack([clip.picture for clip in originals]), sources, MAX_BITS, motion, MIN_SIMILARITY)
    print(f"\n{len(originals)} clips of {len(set(sources))} videos: dropped clips, videos without any clip left")
    for name, repeats in (("before", before), ("now", now)):
        kept = {source for source, repeat in zip(sources, repeats, strict=True) if repeat < 0}
        print(f"{name:<10}{(repeats >= 0).sum():>5}{len(set(sources) - kept):>5}")


def print_cost() -> None:
    """Print the time per clip of the fingerprints, and of the search among random ones and among one picture's."""
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (32, 64, 64, 3), np.uint8)
    gray = thumbnails(clip)
    print("\nmilliseconds per clip, best of 200")
    for name, function in {
        "thumbnails": lambda: thumbnails(clip),
        "fingerprint": lambda: fingerprint(gray),
        "signs of motion": lambda: motion_signs(gray),
    }.items():
        print(f"{name:<40}{1e3 * min(_seconds(function) for _ in range(200)):.3f}")
    print("\nnear-duplicates, microseconds of CPU per clip: pictures alone, with motion")
    for name, number, words in (
        ("random pictures", 100_000, rng.integers(0, 2**64, (100_000, 2), np.uint64)),
        ("random pictures", 400_000, rng.integers(0, 2**64, (400_000, 2), np.uint64)),
        ("one picture, moments that differ", 5_000, np.zeros((5_000, 2), np.uint64)),
    ):
        above = rng.integers(0, 1 << 16, (number, 8), np.uint32)
        motion, owner = above | (above ^ 0xFFFF) << 16, np.arange(number) // 7
        costs = []
        for arguments in ((), (motion, MIN_SIMILARITY)):
            start = time.process_time()
            near_duplicates(words, owner, MAX_BITS, *arguments)
            costs.append(1e6 * (time.process_time() - start) / number)
        print(f"{name:<40}{number:>9}{costs[0]:>9.1f}{costs[1]:>9.1f}")


def _seconds(function: Callable[[], object]) -> float:
    """Return the duration of one call, seconds."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    cv2.setNumThreads(1)
    print_cost()
    if not DATA.is_dir():
        print(f"\nno real videos at {DATA}: the tables of copies and takes are left out")
        return
    made = make_set()
    print_copies(made)
    print_takes(made)


if __name__ == "__main__":
    main()
