"""Fingerprints of clips that survive another encoding, and clips of different sources that are near-duplicates by them.

After the DCT hash of images (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010), with
half of the bits for what changes over the clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

SIDE = 32  # pixels, gray
LOW = 8  # lowest frequencies kept, each way
# An orthonormal coefficient of 16 is a wave of half a gray level (RMS). Encoders take weaker ones away and add others:
# of copies at H.264 crf 38, 85 % were within 10 bits with half of this bound and 93 % with it.
FLOOR = 16.0
BITS = 2 * LOW * LOW
BLOCK = 16384  # clips looked up in the index of all kept ones at a time, of up to 260,000; more of more
SMALL_BLOCK = 512  # clips compared with one another without an index
PAIRS = 1 << 22  # pairs compared at a time: bounds the memory they take to about 200 MB


def fingerprint(clip: np.ndarray) -> str:
    """128 bits of `clip` (T, H, W, 3) uint8 as 32 hex digits: one bit for each coefficient that is clearly above 0.

    64 low frequencies of the mean frame, then 64 of the mean of the last quarter minus that of the first, without their
    constant parts. What hardly moves has no bits in the second half. A copy whose clips start 4 frames later or earlier
    is found in half of the cases, and one cropped by 4 % on each side in a quarter.
    """
    gray = np.stack(
        [cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA) for f in clip]
    ).astype(np.float32)
    quarter = max(1, len(gray) // 4)
    change = gray[-quarter:].mean(0) - gray[:quarter].mean(0)
    low = np.stack([cv2.dct(image)[:LOW, :LOW] for image in (gray.mean(0), change)])
    low[:, 0, 0] = 0
    return np.packbits(low.ravel() > FLOOR).tobytes().hex()


def near_duplicates(
    fingerprints: Sequence[str] | np.ndarray, sources: Sequence[str] | np.ndarray, max_bits: int
) -> np.ndarray:
    """For each clip (N,) int64 the index of the earlier, kept clip that it repeats, or -1 for a clip that is kept.

    Clips are taken in order. One is dropped if a kept clip of another source differs in at most `max_bits` bits; the
    first such clip is named. `fingerprints` are hex strings of 32 digits, or their bits as uint64 (N, 2).

    Exact, without comparing all pairs: the bits are dealt to bands, so many that two fingerprints within `max_bits`
    have a band in which they differ in one bit at most. Dropped clips are not compared with later ones, so many copies
    of one picture, or many flat clips, cost no more than others.

    Raises:
        ValueError: a fingerprint is not 32 hex digits, lengths differ, or `max_bits` is not in 0..127.
    """
    bits = words(fingerprints)
    if len(sources) != len(bits) or not 0 <= max_bits < BITS:
        got = f"{len(bits)} fingerprints, {len(sources)} sources and max_bits {max_bits}"
        raise ValueError(f"as many sources as fingerprints and max_bits in 0..{BITS - 1}, got {got}")
    owner = np.unique(np.asarray(sources), return_inverse=True)[1]
    clips = _Clips(bits, owner, max_bits)
    repeats = np.full(len(bits), -1, np.int64)
    kept = _Index(max_bits)
    # A block is added in time that grows with the whole index, and parts of it with the block: the least sum of both.
    size = max(BLOCK, math.isqrt(2 * SMALL_BLOCK * len(bits)))
    for block in _blocks(np.arange(len(bits)), size):
        repeats[block] = kept.first_near(clips, block)
        kept_here = _Index(max_bits)
        for small in _blocks(block[repeats[block] < 0], SMALL_BLOCK):
            repeats[small] = kept_here.first_near(clips, small)
            rest = small[repeats[small] < 0]
            near = np.tril(clips.near(rest[:, None], rest[None, :]), -1)
            for later in np.flatnonzero(near.any(1)):
                earlier = rest[near[later] & (repeats[rest] < 0)]
                if len(earlier):
                    repeats[rest[later]] = earlier[0]
            kept_here.add(clips, rest[repeats[rest] < 0])
        kept.add(clips, block[repeats[block] < 0])
    return repeats


def words(fingerprints: Sequence[str] | np.ndarray) -> np.ndarray:
    """The bits of fingerprints as uint64 (N, 2)."""
    if isinstance(fingerprints, np.ndarray) and fingerprints.dtype == np.uint64:
        return fingerprints.reshape(-1, 2)
    for text in fingerprints:
        if len(text) != BITS // 4:
            raise ValueError(f"a fingerprint has {BITS // 4} hex digits, got {text!r}")
    return np.frombuffer(bytes.fromhex("".join(fingerprints)), np.uint64).reshape(-1, 2)


def _blocks(items: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@dataclass(frozen=True)
class _Clips:
    """All clips of a comparison."""

    words: np.ndarray  # (N, 2) uint64
    owner: np.ndarray  # (N,) the number of a clip's source
    max_bits: int

    def near(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Whether clips with these indices are of different sources and alike; bool of the indices' common shape."""
        first, second = (np.bitwise_count(self.words[one, i] ^ self.words[other, i]) for i in range(2))
        return (first + second <= self.max_bits) & (self.owner[one] != self.owner[other])

    def keys(self, clips: np.ndarray, band: np.ndarray) -> np.ndarray:
        """(n,) uint64: the bits `band` (at most 63 indices in 0..127) of each clip as one number."""
        bits = np.unpackbits(self.words[clips].view(np.uint8), axis=1)[:, band]
        return bits @ (np.uint64(1) << np.arange(len(band), dtype=np.uint64))


class _Index:
    """Clips, found by fingerprints that differ from theirs in few bits."""

    def __init__(self, max_bits: int) -> None:
        # Every n-th bit: a band has bits of both halves. One of the second half alone is equal for all still clips.
        num_bands = max(3, max_bits // 2 + 1)
        self._bands = [np.arange(BITS)[start::num_bands] for start in range(num_bands)]
        self._keys = [np.zeros(0, np.uint64) for _ in self._bands]  # of each band, sorted
        self._clips = [np.zeros(0, np.int64) for _ in self._bands]  # in the order of their keys

    def add(self, clips: _Clips, added: np.ndarray) -> None:
        """Make the clips with indices `added` (n,) findable."""
        for i, band in enumerate(self._bands):
            keys = clips.keys(added, band)
            new = np.argsort(keys)
            keys, numbers = np.append(self._keys[i], keys[new]), np.append(self._clips[i], added[new])
            order = np.argsort(keys, kind="stable")  # merges two sorted runs in linear time
            self._keys[i], self._clips[i] = keys[order], numbers[order]

    def first_near(self, clips: _Clips, wanted: np.ndarray) -> np.ndarray:
        """For the clips with indices `wanted` (n,) the lowest index in here of a near one, or -1."""
        none = len(clips.words)
        first = np.full(len(wanted), none, np.int64)
        for i, band in enumerate(self._bands):
            keys = clips.keys(wanted, band)
            order = np.argsort(keys)  # neighbouring look-ups in neighbouring memory
            flips = np.array([0, *(1 << bit for bit in range(len(band)))], np.uint64)
            for position, found in self._matches(i, (flips[:, None] ^ keys[order]).ravel()):
                asking = order[position % len(order)]
                near = clips.near(wanted[asking], found)
                np.minimum.at(first, asking[near], found[near])
        return np.where(first < none, first, -1)

    def _matches(self, band: int, keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions in `keys` (n,) and clips with that key in `band`, all pairs, at most about PAIRS at a time."""
        known = self._keys[band]
        low = np.searchsorted(known, keys)
        inside = np.flatnonzero(low < len(known))
        asking = inside[known[low[inside]] == keys[inside]]
        low = low[asking]
        count = np.searchsorted(known, keys[asking], "right") - low  # of the few that are there
        batch = np.cumsum(count) // PAIRS
        for part in np.split(np.arange(len(asking)), np.flatnonzero(np.diff(batch)) + 1):
            n = count[part]
            within = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
            yield np.repeat(asking[part], n), self._clips[band][np.repeat(low[part], n) + within]
