"""Positions of the pixels in contact sheets and grids."""

from __future__ import annotations

import numpy as np
import pytest

from vgan.viz.panels import BeforeAfter, before_after_sheet, film_strip, sample_grid, stream_panels


def noise_clips(num: int, length: int = 5, size: int = 16, seed: int = 0) -> np.ndarray:
    """Draw noise clips (num, length, size, size, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (num, length, size, size, 3), dtype=np.uint8)


def test_strip_puts_every_nth_frame_side_by_side() -> None:
    clip = noise_clips(1, length=9)[0]
    sheet = film_strip(clip, every=4, gap=2)
    assert sheet.shape == (16, 3 * 16 + 2 * 2, 3)
    for position, t in enumerate((0, 4, 8)):
        np.testing.assert_array_equal(sheet[:, position * 18 : position * 18 + 16], clip[t])


def test_strip_float_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        film_strip(np.zeros((2, 4, 4, 3), np.float32))


@pytest.mark.parametrize("scale", [1, 2])
def test_sample_grid_plays_every_clip_in_its_cell(scale: int) -> None:
    clips = noise_clips(5)
    video = sample_grid(clips, columns=3, scale=scale)
    assert video.shape[0] == 5
    assert video.shape[1] % 2 == video.shape[2] % 2 == 0
    cell = 16 * scale + 4
    for n, clip in enumerate(clips):
        top, left = 4 + n // 3 * cell, 4 + n % 3 * cell
        np.testing.assert_array_equal(video[:, top : top + 16 * scale : scale, left : left + 16 * scale : scale], clip)
    assert np.all(video[:, 4 + cell : 4 + 2 * cell - 4, 4 + 2 * cell :] == 255)  # the sixth cell is empty


def test_sample_grid_without_columns_is_about_square() -> None:
    height, width = sample_grid(noise_clips(9)).shape[1:3]
    assert height == width == 3 * 20 + 4


def make_streams(num: int = 2, length: int = 5) -> dict[str, np.ndarray]:
    clips = noise_clips(num * 2, length)
    mask = np.random.default_rng(1).random((num, length, 16, 16))
    still = noise_clips(num, 1, seed=2)
    return {"composite": clips[:num], "foreground": clips[num:], "mask": mask, "background": still}


def test_stream_panels_show_four_columns_with_a_still_background_and_a_gray_mask() -> None:
    streams = make_streams()
    video = stream_panels(streams)
    column = video.shape[2] // 4
    tiles = [video[:, 24:40, n * column + 4 : n * column + 20] for n in range(4)]  # first clip, below the header
    np.testing.assert_array_equal(tiles[0], streams["composite"][0])
    np.testing.assert_array_equal(tiles[1], streams["foreground"][0])
    np.testing.assert_array_equal(tiles[2], np.rint(streams["mask"][0] * 255).astype(np.uint8)[..., None].repeat(3, -1))
    np.testing.assert_array_equal(tiles[3], streams["background"][0].repeat(5, 0))
    for n in range(4):
        assert video[0, :20, n * column : (n + 1) * column].min() < 128, "every column has a label"


def test_stream_panels_mask_may_be_uint8() -> None:
    streams = make_streams()
    levels = np.rint(streams["mask"] * 255).astype(np.uint8)
    np.testing.assert_array_equal(stream_panels({**streams, "mask": levels[..., None]}), stream_panels(streams))


def test_stream_panels_missing_stream_is_named() -> None:
    streams = make_streams()
    del streams["mask"]
    with pytest.raises(ValueError, match="lack mask"):
        stream_panels(streams)


def test_stream_panels_other_shape_is_named() -> None:
    with pytest.raises(ValueError, match="foreground must be"):
        stream_panels({**make_streams(), "foreground": noise_clips(2, length=4)})


def test_before_after_sheet_shows_both_strips_at_tile_height() -> None:
    before, after = noise_clips(2, length=8)
    sheet = before_after_sheet([BeforeAfter(title="a.avi", before=before, after=after)], every=4, tile=16)
    label, step = 62, 20
    top = 22
    np.testing.assert_array_equal(sheet[top : top + 16, label : label + 16], before[0])
    np.testing.assert_array_equal(sheet[top : top + 16, label + step : label + step + 16], before[4])
    np.testing.assert_array_equal(sheet[top + 20 : top + 36, label : label + 16], after[0])
    two_pairs = before_after_sheet(
        [BeforeAfter(title=t, before=before, after=after) for t in ("a", "b" * 200)], every=4, tile=16
    )
    assert two_pairs.shape[0] > 2 * sheet.shape[0]
    assert two_pairs.shape[1] == sheet.shape[1]  # a long title is cut, not wider
