"""Detection of copies of training clips, without false positives for new clips."""

from __future__ import annotations

import numpy as np
import pytest

from vgan.metrics.nearest_neighbors import (
    NearestNeighbors,
    block_means,
    is_memorized,
    nearest_neighbors,
    normalize_blocks,
)


def clips(num: int, seed: int, size: int = 16) -> np.ndarray:
    """Return clips (num, 16, size, size, 3) of smooth random images."""
    blocks = np.random.default_rng(seed).integers(0, 256, (num, 8, 8, 8, 3), np.uint8)
    return blocks.repeat(2, 1).repeat(size // 8, 2).repeat(size // 8, 3)


def test_coarse_is_the_mean_of_every_block() -> None:
    result = block_means(clips(2, seed=0))
    expected = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(result.reshape(2, 8, 8, 8, 3), expected)
    with pytest.raises(ValueError, match="multiples of 8"):
        block_means(np.zeros((1, 15, 16, 16, 3), np.uint8))


def test_pattern_forgets_brightness_and_contrast_and_does_not_blow_up_noise() -> None:
    blocks = block_means(clips(3, seed=0))
    np.testing.assert_allclose(normalize_blocks(0.3 * blocks + 40), normalize_blocks(blocks), atol=1e-4)
    np.testing.assert_allclose(normalize_blocks(blocks).std(axis=1), 1, rtol=1e-5)
    assert np.abs(normalize_blocks(100 + 0.001 * blocks)).max() < 0.2


def test_nearest_is_that_of_a_plain_search_in_whole_and_in_parts() -> None:
    asked, known = block_means(clips(5, seed=1)), block_means(clips(9, seed=2))
    distances = np.sqrt(((asked[:, None] - known[None]) ** 2).mean(axis=2))
    result = nearest_neighbors(asked, known)
    np.testing.assert_allclose(result.distance, distances.min(axis=1), rtol=1e-5)
    assert (result.row == distances.argmin(axis=1)).all()
    for sources in (None, np.array(list("aabbccddd")), np.array(list("abcabcabc"))):
        full = nearest_neighbors(asked, known, sources=sources)
        parts = NearestNeighbors.none(5)
        for first, end in ((6, 9), (0, 4), (4, 6)):
            part = None if sources is None else sources[first:end]
            parts = parts.min(nearest_neighbors(asked, known[first:end], sources=part, first=first))
        for name in ("distance", "row", "source", "second"):
            np.testing.assert_array_equal(getattr(parts, name), getattr(full, name))
        if sources is not None:
            own = sources[result.row]
            expected = [row[sources != s].min() for row, s in zip(distances, own, strict=True)]
            np.testing.assert_allclose(full.second, expected, rtol=1e-5)


def test_nearest_leaves_out_clips_of_the_own_video() -> None:
    known = block_means(clips(3, seed=3))
    result = nearest_neighbors(known[[0, 0]], known, sources=np.array(["x", "y", "x"]), own=np.array(["x", ""]))
    assert result.row.tolist() == [1, 0]
    assert result.distance[1] == 0
    nowhere = nearest_neighbors(known[:1], known, sources=np.array(["x"] * 3), own=np.array(["x"]))
    assert np.isinf(nowhere.distance).all()
    assert np.isnan(nowhere.ratio).all()


def test_copies_are_told_from_new_clips() -> None:
    known, unseen = clips(40, seed=4), clips(40, seed=5)
    noise = np.random.default_rng(6).integers(-2, 3, (20, 16, 16, 16, 3))
    redrawn = np.clip(known[:20].astype(int) + noise, 0, 255).astype(np.uint8)
    gray = np.full((5, 16, 16, 16, 3), 128, np.uint8)  # near to all clips, and a copy of none
    sets = [
        nearest_neighbors(normalize_blocks(block_means(c)), normalize_blocks(block_means(known))).ratio
        for c in (redrawn, clips(200, seed=7), gray, unseen)
    ]
    assert is_memorized(sets[0], sets[3]).mean() == 1
    assert is_memorized(sets[1], sets[3]).mean() < 0.15  # 0.05 by its definition
    assert is_memorized(sets[2], sets[3]).mean() == 0
