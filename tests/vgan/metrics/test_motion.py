"""Statistics of motion, on synthetic clips with known motion."""

from __future__ import annotations

import numpy as np
import pytest

from vgan.metrics.motion import RunningMoments, diversity, flicker, mask_statistics, motion, spectral_centroid, spectrum


def waving(cycles: float, num_frames: int = 16, size: int = 8) -> np.ndarray:
    """Return a clip (1, T, H, W, 3) whose pixels oscillate for `cycles` periods, each with its own amplitude."""
    time = np.arange(num_frames)[:, None, None]
    reach = np.linspace(10, 90, size * size).reshape(size, size)
    gray = 128 + reach * np.sin(2 * np.pi * cycles * time / num_frames + 0.3)
    return np.repeat(np.rint(gray)[..., None], 3, axis=-1).astype(np.uint8)[None]


def test_motion_is_the_mean_step_of_each_clip() -> None:
    clips = np.zeros((2, 3, 4, 4, 3), np.uint8)
    clips[1, 1] = 10  # up by 10 and down again
    assert motion(clips).tolist() == [0.0, 10.0]


@pytest.mark.parametrize("cycles", [1, 3, 5, 8])
def test_spectrum_peaks_at_the_frequency_of_the_clip_and_its_centroid_lies_there(cycles: int) -> None:
    shares = spectrum(waving(cycles))
    assert shares.shape == (1, 8)
    assert shares.sum() == pytest.approx(1)
    assert shares[0].argmax() == cycles - 1
    if 1 < cycles < 8:  # at the lowest and highest frequency the window leaks to one side only
        assert spectral_centroid(shares, 16)[0] == pytest.approx(cycles / 16, abs=0.003)


def test_spectrum_of_a_still_clip_is_zero_and_its_centroid_unknown() -> None:
    shares = spectrum(np.full((1, 16, 4, 4, 3), 7, np.uint8))
    assert not shares.any()
    assert np.isnan(spectral_centroid(shares, 16)).all()


def test_flicker_sees_the_background_and_neither_drift_nor_the_moving_half() -> None:
    still = np.full((16, 8, 8, 3), 100, np.uint8)
    drifting = still + np.arange(16, dtype=np.uint8)[:, None, None, None]
    flickering = still.copy()
    flickering[::2] += 4  # every second frame is brighter by 4
    busy_front = still.copy()
    busy_front[::2, :, 5:] = 0  # three of eight columns blink
    assert flicker(np.stack([still, drifting, flickering, busy_front])).tolist() == [0, 0, 4, 0]


def test_diversity_of_parts_added_is_that_of_the_whole_and_numpys() -> None:
    clips = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 5, 3), np.uint8)
    expected = clips.astype(np.float64).std(axis=0, ddof=1).mean()
    assert diversity(clips) == pytest.approx(expected, rel=1e-12)
    assert (RunningMoments.of(clips[:2]) + RunningMoments.of(clips[2:])).diversity() == pytest.approx(
        expected, rel=1e-12
    )
    assert diversity(np.repeat(clips[:1], 3, axis=0)) == 0
    assert np.isnan(diversity(clips[:1]))


def test_mask_statistics_tell_a_mask_on_the_motion_from_one_beside_it() -> None:
    clips = np.full((3, 8, 8, 8, 3), 100, np.uint8)
    clips[:2, ::2, :, :4] = 0  # the left half blinks; the third clip is still
    left = np.zeros((8, 8, 8), np.float32)
    left[:, :, :4] = 1
    result = mask_statistics(np.stack([left, 1 - left, np.full_like(left, 0.3)]), clips)
    np.testing.assert_allclose(result["mask-mean"], [0.5, 0.5, 0.3], rtol=1e-6)
    assert result["mask-decided"].tolist() == [1, 1, 0]
    np.testing.assert_allclose(result["mask-follows"], [1, -1, np.nan], rtol=1e-6)
