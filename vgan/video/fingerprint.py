"""Fingerprints of a clip's picture and motion, robust to re-encoding, and near-duplicate detection between sources.

The picture is the DCT hash of images (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions",
2010), with half of the bits for the change over the clip. It finds the clips of one take; the signs of the motion tell
the same moment of it from others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

SIDE = 32  # pixels, gray
LOW = 8  # number of lowest frequencies, per direction
# An orthonormal coefficient of 16 is a wave of half a gray level (RMS). Encoders remove and add weaker ones: of copies
# at H.264 crf 38, 85 % were within 10 bits with half of this bound and 93 % with this bound.
FLOOR = 16.0
BITS = 2 * LOW * LOW
# Vertical frequencies of the waves that decide the orientation: of 495 copies, 1.0 % are mirrored against the original
# with 2 of them and 2.6 % with 8.
ODD_ROWS = 2
BLOCK = 16384  # clips per query of the index of all retained ones, for up to 260,000 clips; larger for more clips
SMALL_BLOCK = 512  # clips compared with each other without an index
PAIRS = 1 << 22  # pairs compared at a time; limits their memory to about 200 MB

PARTS = 8  # of a clip, of equal length
LOW_MOTION = 4  # number of lowest frequencies of motion, per direction
# Minimum change of a coefficient, absolute and in standard deviations over time. Of 189 pairs of other moments of one
# take (UCF101, JHMDB) whose pictures are alike, 174 differ with these bounds; with 3 for the first, 6 % of the clips
# have too few signs and 150 differ. Of 448 copies 98.9 and 98.2 % are similar.
MIN_CHANGE, MIN_DEVIATION = 1.5, 0.5
MAX_SHIFT = 2  # maximum shift of a copy, parts
FEW_SIGNS = 16  # clips with fewer of 128 signs have no motion to compare
VERIFIED = 1 << 18  # pairs whose motion is compared at a time; limits their memory to about 50 MB


def thumbnails(clip: np.ndarray) -> np.ndarray:
    """Reduce a clip to gray frames that are equal for the clip and its mirror image.

    The frames are mirrored if, of the low horizontally odd frequencies of the mean frame, the strongest is negative.

    Args:
        clip: frames (T, H, W, 3) uint8, RGB.

    Returns:
        Frames (T, 32, 32) float32, 0..255.
    """
    gray = np.stack(
        [cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA) for f in clip]
    ).astype(np.float32)
    odd = cv2.dct(gray.mean(0))[:ODD_ROWS, 1:LOW:2].ravel()
    return gray[:, :, ::-1] if odd[np.abs(odd).argmax()] < 0 else gray


def fingerprint(gray: np.ndarray) -> str:
    """Compute the 128-bit fingerprint of the picture as 32 hex digits.

    A bit is 1 if its DCT coefficient is above FLOOR: 64 low frequencies of the mean frame, then 64 of the mean of the
    last quarter minus that of the first, without their constant parts. Clips with little motion have no bits in the
    second half.

    Args:
        gray: thumbnails (T, 32, 32) float32.
    """
    quarter = max(1, len(gray) // 4)
    change = gray[-quarter:].mean(0) - gray[:quarter].mean(0)
    low = _low_frequencies([gray.mean(0), change], LOW)
    low[:, 0, 0] = 0
    return np.packbits(low.ravel() > FLOOR).tobytes().hex()


def motion_signs(gray: np.ndarray) -> str:
    """Compute the signs of the picture's changes over time, 256 bits as 64 hex digits.

    For each of 8 parts of the clip and its 16 lowest frequencies: 16 bits that are 1 if the DCT coefficient exceeds its
    mean over time by more than the minimum change, then 16 that are 1 if it falls below the mean by more.

    Args:
        gray: thumbnails (T, 32, 32) float32; T is a multiple of 8.
    """
    parts = gray.reshape(PARTS, -1, SIDE, SIDE).mean(1)
    change = _low_frequencies(parts, LOW_MOTION).reshape(PARTS, -1)
    change -= change.mean(0)
    bound = np.maximum(MIN_DEVIATION * change.std(0), MIN_CHANGE)
    return np.packbits(np.stack([change > bound, change < -bound], 1)).tobytes().hex()


def motion_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compare the motion of n pairs of clips: correlation of their signs, -1..1, float64 (n,).

    It is the highest of all shifts by up to MAX_SHIFT parts in time, and 1 if neither clip has motion, so that such
    clips are compared by their pictures alone.

    Args:
        a: signs of the first clip of each pair, as uint32 (n, PARTS).
        b: those of the second.
    """
    a, b = (np.ascontiguousarray(signs.T) for signs in (a, b))  # one operation for a part of all pairs
    inverse = (b >> 16) | (b << 16)
    num_a, num_b = np.bitwise_count(a), np.bitwise_count(b)
    best = np.full(a.shape[1], -1.0)
    for shift in range(-MAX_SHIFT, MAX_SHIFT + 1):
        of_a = slice(max(0, shift), PARTS + min(0, shift))
        of_b = slice(max(0, -shift), PARTS - max(0, shift))
        equal = np.bitwise_count(a[of_a] & b[of_b]).sum(0, dtype=np.int16)
        opposite = np.bitwise_count(a[of_a] & inverse[of_b]).sum(0, dtype=np.int16)
        product = num_a[of_a].sum(0, dtype=np.int32) * num_b[of_b].sum(0, dtype=np.int32)
        np.maximum(best, (equal - opposite) / np.sqrt(np.maximum(product, 1)), out=best)
    best[np.maximum(num_a.sum(0), num_b.sum(0)) < FEW_SIGNS] = 1
    return best


def _low_frequencies(images: Iterable[np.ndarray], number: int) -> np.ndarray:
    """Return the `number` lowest frequencies per direction of each image, float32 (n, number, number)."""
    return np.stack([cv2.dct(image)[:number, :number] for image in images])


def near_duplicates(
    fingerprints: Sequence[str] | np.ndarray,
    sources: Sequence[str] | np.ndarray,
    max_bits: int,
    motion: np.ndarray | None = None,
    min_similarity: float = -1.0,
) -> np.ndarray:
    """Find near-duplicates: for each clip the index of the earlier retained clip that it repeats, -1 if it is retained.

    Clips are processed in order. A clip is dropped if a retained clip of another source differs in at most `max_bits`
    bits and their motion is similar; the result is the first such clip.

    The result is exact, without a comparison of all pairs: the bits are divided into so many bands that two
    fingerprints within `max_bits` have a band in which they differ in at most one bit. Dropped clips are not compared
    with later ones, so that many copies of one picture, or many clips of low contrast, cost no more than others. Many
    moments of one picture do: a million pairs of them take a second.

    Args:
        fingerprints: N hex strings of 32 digits, or their bits as uint64 (N, 2).
        sources: source of each clip, (N,).
        max_bits: maximum Hamming distance of near-duplicates, bits.
        motion: signs of each clip's motion, uint32 (N, PARTS); None compares pictures alone.
        min_similarity: minimum `motion_similarity` of near-duplicates, -1..1.

    Returns:
        Indices (N,) int64.

    Raises:
        ValueError: a fingerprint is not 32 hex digits, lengths differ, or `max_bits` is not in 0..127.
    """
    bits = fingerprint_words(fingerprints)
    lengths = {len(bits), len(sources), len(bits if motion is None else motion)}
    if len(lengths) > 1 or not 0 <= max_bits < BITS:
        got = f"lengths {sorted(lengths)} and max_bits {max_bits}"
        raise ValueError(f"need one source and one motion per fingerprint and max_bits in 0..{BITS - 1}, got {got}")
    owner = np.unique(np.asarray(sources), return_inverse=True)[1]
    clips = _Clips(bits, owner, max_bits, None if min_similarity == -1 else motion, min_similarity)
    repeats = np.full(len(bits), -1, np.int64)
    retained = _Index(max_bits)
    # The time to add a block grows with the size of the index, that of its small blocks with the size of the block;
    # this size minimizes the sum.
    size = max(BLOCK, math.isqrt(2 * SMALL_BLOCK * len(bits)))
    for block in _blocks(np.arange(len(bits)), size):
        repeats[block] = retained.first_near(clips, block)
        retained_in_block = _Index(max_bits)
        for small in _blocks(block[repeats[block] < 0], SMALL_BLOCK):
            repeats[small] = retained_in_block.first_near(clips, small)
            rest = small[repeats[small] < 0]
            near = np.tril(clips.near(rest[:, None], rest[None, :]), -1)
            pairs = np.nonzero(near)
            near[pairs] = clips.same_moment(*(rest[index] for index in pairs))
            for later in np.flatnonzero(near.any(1)):
                earlier = rest[near[later] & (repeats[rest] < 0)]
                if len(earlier):
                    repeats[rest[later]] = earlier[0]
            retained_in_block.add(clips, rest[repeats[rest] < 0])
        retained.add(clips, block[repeats[block] < 0])
    return repeats


def motion_words(signs: Sequence[str]) -> np.ndarray:
    """Convert signs of motion from hex strings to uint32 (N, PARTS); an empty string has no signs.

    Raises:
        ValueError: signs are neither 64 hex digits nor empty.
    """
    length = 2 * PARTS * LOW_MOTION**2 // 4
    for text in signs:
        if len(text) not in (0, length):
            raise ValueError(f"signs of motion have {length} hex digits, got {text!r}")
    joined = "".join(text or "0" * length for text in signs)
    return np.frombuffer(bytes.fromhex(joined), np.uint32).reshape(-1, PARTS)


def fingerprint_words(fingerprints: Sequence[str] | np.ndarray) -> np.ndarray:
    """Convert fingerprints, hex strings or already uint64, to their bits as uint64 (N, 2).

    Raises:
        ValueError: a fingerprint is not 32 hex digits.
    """
    if isinstance(fingerprints, np.ndarray) and fingerprints.dtype == np.uint64:
        return fingerprints.reshape(-1, 2)
    for text in fingerprints:
        if len(text) != BITS // 4:
            raise ValueError(f"a fingerprint has {BITS // 4} hex digits, got {text!r}")
    return np.frombuffer(bytes.fromhex("".join(fingerprints)), np.uint64).reshape(-1, 2)


def _blocks(items: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Split `items` into blocks of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


@dataclass(frozen=True)
class _Clips:
    """All clips of a comparison."""

    words: np.ndarray  # (N, 2) uint64
    owner: np.ndarray  # (N,) index of each clip's source
    max_bits: int
    motion: np.ndarray | None  # (N, PARTS) uint32
    min_similarity: float

    def near(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Compare pictures by index: True if near and of different sources, bool of the broadcast shape."""
        first, second = (np.bitwise_count(self.words[a, i] ^ self.words[b, i]) for i in range(2))
        return (first + second <= self.max_bits) & (self.owner[a] != self.owner[b])

    def same_moment(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Compare the motion of pairs of clips by index (n,): True if it is similar, bool (n,)."""
        same = np.ones(len(a), bool)
        if self.motion is not None:
            for pairs in _blocks(np.arange(len(a)), VERIFIED):
                similarity = motion_similarity(self.motion[a[pairs]], self.motion[b[pairs]])
                same[pairs] = similarity >= self.min_similarity
        return same

    def keys(self, clips: np.ndarray, band: np.ndarray) -> np.ndarray:
        """Return the bits `band` (at most 63 indices in 0..127) of each clip as one number, (n,) uint64."""
        bits = np.unpackbits(self.words[clips].view(np.uint8), axis=1)[:, band]
        return bits @ (np.uint64(1) << np.arange(len(band), dtype=np.uint64))


class _Index:
    """Index of clips for queries by fingerprints that differ in few bits."""

    def __init__(self, max_bits: int) -> None:
        # A band takes every n-th bit, so that it has bits of both halves: bands of the second half only would be equal
        # for all clips without motion.
        num_bands = max(3, max_bits // 2 + 1)
        self._bands = [np.arange(BITS)[start::num_bands] for start in range(num_bands)]
        self._masks = [np.packbits(np.isin(np.arange(BITS), band)).view(np.uint64) for band in self._bands]
        self._keys = [np.zeros(0, np.uint64) for _ in self._bands]  # per band, sorted
        self._clips = [np.zeros(0, np.int64) for _ in self._bands]  # clip indices in the order of their keys

    def add(self, clips: _Clips, added: np.ndarray) -> None:
        """Add the clips with indices `added` (n,) to the index."""
        for i, band in enumerate(self._bands):
            keys = clips.keys(added, band)
            new = np.argsort(keys)
            keys, indices = np.append(self._keys[i], keys[new]), np.append(self._clips[i], added[new])
            order = np.argsort(keys, kind="stable")  # merges two sorted runs in linear time
            self._keys[i], self._clips[i] = keys[order], indices[order]

    def first_near(self, clips: _Clips, queries: np.ndarray) -> np.ndarray:
        """Return for each clip of `queries` (n,) the lowest index of a near-duplicate in this index, or -1."""
        none = len(clips.words)
        first = np.full(len(queries), none, np.int64)
        for i, band in enumerate(self._bands):
            keys = clips.keys(queries, band)
            order = np.argsort(keys)  # consecutive lookups then read adjacent memory
            flips = np.array([0, *(1 << bit for bit in range(len(band)))], np.uint64)
            for position, candidates in self._matches(i, (flips[:, None] ^ keys[order]).ravel()):
                rows = order[position % len(order)]
                # The motion of a pair is compared once: in the first band that finds the pair, if it matters.
                near = (candidates < first[rows]) & clips.near(queries[rows], candidates)
                rows, candidates = rows[near], candidates[near]
                new = ~self._found(clips.words[queries[rows]] ^ clips.words[candidates], i)
                rows, candidates = rows[new], candidates[new]
                same = clips.same_moment(queries[rows], candidates)
                np.minimum.at(first, rows[same], candidates[same])
        return np.where(first < none, first, -1)

    def _found(self, difference: np.ndarray, number: int) -> np.ndarray:
        """Return the pairs that differ in at most one bit of one of the first `number` bands, bool (n,).

        Args:
            difference: exclusive or of the words of each pair, uint64 (n, 2).
            number: number of bands.
        """
        found = np.zeros(len(difference), bool)
        for mask in self._masks[:number]:
            found |= np.bitwise_count(difference & mask).sum(1) <= 1
        return found

    def _matches(self, band: int, keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield all pairs of positions in `keys` (n,) and clips with that key in `band`, about PAIRS at a time."""
        indexed = self._keys[band]
        low = np.searchsorted(indexed, keys)
        inside = np.flatnonzero(low < len(indexed))
        positions = inside[indexed[low[inside]] == keys[inside]]
        low = low[positions]
        count = np.searchsorted(indexed, keys[positions], "right") - low  # only for the few keys with a match
        batch = np.cumsum(count) // PAIRS
        for part in np.split(np.arange(len(positions)), np.flatnonzero(np.diff(batch)) + 1):
            n = count[part]
            within = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
            yield np.repeat(positions[part], n), self._clips[band][np.repeat(low[part], n) + within]
