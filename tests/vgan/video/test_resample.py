"""Frames are resampled by time for any timing of the source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from vgan.errors import VideoError
from vgan.video.decoding.decode import Frame
from vgan.video.resample import resample

PICTURE = np.zeros((2, 2, 3), np.uint8)


def at(times_s: Iterable[float]) -> list[Frame]:
    return [Frame(float(time_s), PICTURE) for time_s in times_s]


def run(times_s: Iterable[float], fps: float = 25.0) -> list[tuple[int, float]]:
    return [(number, frame.pts_s) for number, frame in resample(at(times_s), fps, max_gap_s=0.2, min_fps=15)]


def test_resample_30_to_25_drops_every_sixth_frame():
    chosen = [pts_s * 30 for _, pts_s in run(np.arange(60) / 30)]
    dropped = sorted(set(range(60)) - {round(index) for index in chosen})
    assert len(chosen) == len(set(chosen)) == 50
    assert np.diff(dropped).tolist() == [6] * 9


def test_resample_picks_the_nearest_frame_of_an_uneven_source():
    rng = np.random.default_rng(0)
    times_s = 3.7 + np.cumsum(rng.uniform(0.005, 0.06, 200))
    targets_s = times_s[0] + np.arange(1000) / 25
    targets_s = targets_s[targets_s <= times_s[-1]]
    slow_reference = [times_s[np.abs(times_s - target_s).argmin()] for target_s in targets_s]
    chosen = [pts_s for _, pts_s in run(times_s)]
    assert chosen[: len(slow_reference)] == slow_reference
    assert len(chosen) - len(slow_reference) in (0, 1)  # the last frame also covers half an interval after it


def test_resample_times_rounded_to_milliseconds_drop_and_repeat_no_frame():
    times_s = np.round(np.arange(100) / 25 + 1 / 3, 3)
    assert [pts_s for _, pts_s in run(times_s)] == times_s.tolist()


def test_resample_16_to_25_repeats_frames_evenly():
    chosen = [pts_s for _, pts_s in run(np.arange(160) / 16)]
    assert len(chosen) == pytest.approx(250, abs=1)
    repeats = np.unique(chosen, return_counts=True)[1]
    assert set(repeats.tolist()) <= {1, 2}


def test_resample_gap_starts_a_new_run_on_its_own_grid():
    chosen = run([*np.arange(50) / 25, *(7.013 + np.arange(50) / 25)])
    assert [number for number, _ in chosen] == [0] * 50 + [1] * 50
    assert chosen[50] == (1, 7.013)


def test_resample_slow_source_is_refused_before_any_frame():
    with pytest.raises(VideoError) as caught:
        next(resample(at(np.arange(40) / 12), 25.0, max_gap_s=0.2, min_fps=15))
    assert (caught.value.stage, caught.value.reason) == ("decode", "low_frame_rate")


def test_resample_ntsc_half_rate_counts_as_15():
    assert run(np.arange(40) * 1001 / 15000)


@pytest.mark.parametrize("num_frames", [10, 40])
def test_resample_failing_source_yields_the_preceding_frames(num_frames):
    def failing() -> Iterator[Frame]:
        yield from at(np.arange(num_frames) / 25)
        raise VideoError("decode", "corrupt")

    resampled = []
    with pytest.raises(VideoError):
        resampled.extend(frame for _, frame in resample(failing(), 25.0, max_gap_s=0.2, min_fps=15))
    assert len(resampled) >= num_frames - 1


@pytest.mark.parametrize("num_frames", [0, 1, 2])
def test_resample_tiny_sources_pass_through(num_frames):
    assert len(run(np.arange(num_frames) / 25)) == num_frames
