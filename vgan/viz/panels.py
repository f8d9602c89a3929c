"""Contact sheets and video grids of uint8 clips, for reports and experiment trackers. NumPy, OpenCV and Pillow only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vgan.models.pretrained import GeneratedClips

STREAMS = ("composite", "foreground", "mask", "background")
_INK, _PAPER = (38, 42, 51), (255, 255, 255)
_GAP = 4  # pixels between tiles


@dataclass(frozen=True, kw_only=True)
class BeforeAfter:
    """A clip before and after stabilization, for `before_after_sheet`."""

    title: str  # e.g. the source's name and its scores
    before: np.ndarray  # (T, H, W, 3) uint8
    after: np.ndarray  # (T, H, W, 3) uint8


def film_strip(frames: np.ndarray, every: int = 4, gap: int = _GAP) -> np.ndarray:
    """Place every `every`-th frame side by side on white.

    Args:
        frames: (T, H, W, 3) uint8.
        every: frame step, at least 1.
        gap: white space between frames, pixels.

    Returns:
        Picture (H, W', 3) uint8.

    Raises:
        ValueError: `every` is below 1, or `frames` has another shape or dtype.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    tiles = list(_checked_frames(frames)[::every])
    return _row(tiles, gap)


def before_after_sheet(pairs: Sequence[BeforeAfter], every: int = 4, tile: int = 96) -> np.ndarray:
    """Draw one labeled block per pair: the strip before stabilization above the strip after.

    The last tile of each strip is the mean over time, which is sharp where the camera is still.

    Args:
        pairs: at least one.
        every: frame step of the strips.
        tile: height of a tile, pixels.

    Returns:
        Picture (H', W', 3) uint8.

    Raises:
        ValueError: `pairs` is empty, or a clip has another shape or dtype.
    """
    if not pairs:
        raise ValueError("before_after_sheet needs at least one pair")
    blocks = []
    for pair in pairs:
        rows = [
            np.hstack([_label(name, 62, tile), _row([*_tiles(clip[::every], tile), _mean_tile(clip, tile)], _GAP)])
            for name, clip in (("before", _checked_frames(pair.before)), ("after", _checked_frames(pair.after)))
        ]
        rows = _same_width(rows)
        width = rows[0].shape[1]
        space = np.full((_GAP, width, 3), 255, np.uint8)
        blocks += [_label(pair.title, width, 22, bold=True), rows[0], space, rows[1], _label("", width, 14)]
    return np.vstack(_same_width(blocks[:-1]))


def sample_grid(clips: np.ndarray, columns: int | None = None, scale: int = 1) -> np.ndarray:
    """Arrange clips in a grid, row by row, as one video.

    Height and width are padded to even numbers, which video codecs require.

    Args:
        clips: (N, T, H, W, 3) uint8.
        columns: number of columns; None makes the grid as square as possible.
        scale: integer factor by which pixels are repeated.

    Returns:
        Video (T, H', W', 3) uint8.

    Raises:
        ValueError: `clips` is empty or has another shape or dtype.
    """
    if clips.ndim != 5 or clips.dtype != np.uint8 or not len(clips):
        raise ValueError(f"clips must be (N, T, H, W, 3) uint8 with N above 0, got {clips.shape} {clips.dtype}")
    num, length, height, width, _ = clips.shape
    columns = columns or int(np.ceil(np.sqrt(num)))
    rows = -(-num // columns)
    cell_h, cell_w = height * scale + _GAP, width * scale + _GAP
    grid = np.full((length, rows * cell_h + _GAP, columns * cell_w + _GAP, 3), 255, np.uint8)
    for n, clip in enumerate(clips):
        top, left = _GAP + n // columns * cell_h, _GAP + n % columns * cell_w
        grid[:, top : top + height * scale, left : left + width * scale] = clip.repeat(scale, 1).repeat(scale, 2)
    return _even(grid)


def stream_panels(streams: Mapping[str, np.ndarray], scale: int = 1) -> np.ndarray:
    """Draw the paper's figure 3 as a video (T, H', W', 3) uint8: a row per clip, a labeled column per stream.

    Args:
        streams: one entry per name of `STREAMS`: "composite" and "foreground" (N, T, H, W, 3) uint8; "mask"
            (N, T, H, W) or (N, T, H, W, 1), uint8 or float in [0, 1]; "background" (N, T or 1, H, W, 3) uint8, a single
            frame being repeated over time.
        scale: integer factor by which pixels are repeated.

    Raises:
        ValueError: a stream is missing or its shape does not fit.
    """
    missing = [name for name in STREAMS if name not in streams]
    if missing:
        raise ValueError(f"streams lack {', '.join(missing)}")
    shape = streams["composite"].shape
    columns = []
    for name in STREAMS:
        clips = _mask_pictures(streams[name]) if name == "mask" else streams[name]
        if clips.ndim == 5 and clips.shape[1] == 1:
            clips = np.broadcast_to(clips, shape)
        if clips.shape != shape or clips.dtype != np.uint8:
            raise ValueError(f"{name} must be {shape} uint8, got {clips.shape} {clips.dtype}")
        columns.append(_column(name, clips, scale))
    return _even(np.concatenate(columns, axis=2))


def forecast_panels(
    image: np.ndarray, predicted: np.ndarray, mask: np.ndarray, truth: np.ndarray | None, scale: int = 1
) -> np.ndarray:
    """Draw the paper's figure 5 as a video (T, H', W', 3) uint8: input, prediction, mask and ground truth.

    Args:
        image: (H, W, 3) uint8 of any size; its center square is drawn.
        predicted: (T, S, S, 3) uint8.
        mask: (T, S, S), uint8 or float in [0, 1].
        truth: ground truth (T, S, S, 3) uint8; None omits the column.
        scale: integer factor by which pixels are repeated.
    """
    length, size = predicted.shape[:2]
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = cv2.resize(image[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA)
    panels = {"input": np.repeat(square[None], length, 0), "prediction": predicted, "mask": _mask_pictures(mask)}
    if truth is not None:
        panels["ground truth"] = truth
    columns = [_column(name, clip[None], scale) for name, clip in panels.items()]
    return _even(np.concatenate(columns, axis=2))


def unit_panels(title: str, clips: np.ndarray, segmented: np.ndarray, scale: int = 2) -> np.ndarray:
    """Draw the top-activating clips of a hidden unit above the regions that activate it, as a titled video.

    Args:
        title: heading.
        clips: (K, T, H, W, 3) uint8.
        segmented: the same clips, faded outside the activating region.
        scale: integer factor by which pixels are repeated.

    Returns:
        Video (T, H', W', 3) uint8.
    """
    grid = sample_grid(np.concatenate([clips, segmented]), columns=len(clips), scale=scale)
    header = np.broadcast_to(_label(title, grid.shape[2], 20, bold=True), (len(grid), 20, grid.shape[2], 3))
    return np.concatenate([header, grid], axis=1)


def _column(name: str, clips: np.ndarray, scale: int) -> np.ndarray:
    """Stack clips (N, T, H, W, 3) uint8 vertically below their name: a video (T, H', W', 3)."""
    grid = sample_grid(clips, columns=1, scale=scale)
    header = np.broadcast_to(_label(name, grid.shape[2], 20, centered=True), (len(grid), 20, grid.shape[2], 3))
    return np.concatenate([header, grid], axis=1)


def clips_panels(clips: GeneratedClips, rows: int, scale: int = 2) -> np.ndarray:
    """Draw the first `rows` clips, with a column per stream if the model has a mask: a video (T, H', W', 3) uint8."""
    if clips.mask is None:
        return sample_grid(clips.video[:rows], columns=1, scale=scale)
    names = {"video": "composite"}  # the name in paper figure 3
    streams = {names.get(name, name): stream[:rows] for name, stream in clips._asdict().items()}
    return stream_panels(streams, scale=scale)


def _checked_frames(frames: np.ndarray) -> np.ndarray:
    """Return the frames after checking that they are (T, H, W, 3) uint8."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be (T, H, W, 3) uint8 with T above 0, got {frames.shape} {frames.dtype}")
    return frames


def _mask_pictures(masks: np.ndarray) -> np.ndarray:
    """Convert masks (N, T, H, W[, 1]), uint8 or float in [0, 1], to gray pictures (N, T, H, W, 3) uint8."""
    values = masks[..., 0] if masks.ndim == 5 and masks.shape[-1] in (1, 3) else masks
    if values.dtype != np.uint8:
        values = np.clip(np.rint(values * 255.0), 0, 255).astype(np.uint8)
    return np.repeat(values[..., None], 3, axis=-1)


def _tiles(frames: np.ndarray, height: int) -> list[np.ndarray]:
    """Resize frames (T, H, W, 3) to a height, keeping the aspect ratio."""
    width = max(1, round(frames.shape[2] * height / frames.shape[1]))
    shrink = height < frames.shape[1]
    interpolation = cv2.INTER_AREA if shrink else cv2.INTER_NEAREST
    return [cv2.resize(frame, (width, height), interpolation=interpolation) for frame in frames]


def _mean_tile(frames: np.ndarray, height: int) -> np.ndarray:
    """Draw the mean over time of frames (T, H, W, 3) as a tile labeled "mean"."""
    mean = np.rint(frames.mean(axis=0)).astype(np.uint8)
    tile = _tiles(mean[None], height)[0]
    picture = Image.fromarray(tile)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, 37, 14), fill=_INK)
    draw.text((4, 1), "mean", fill=_PAPER, font=_font(11))
    return np.asarray(picture)


def _row(tiles: Sequence[np.ndarray], gap: int) -> np.ndarray:
    """Join tiles of equal height in a row, `gap` white pixels apart."""
    space = np.full((tiles[0].shape[0], gap, 3), 255, np.uint8)
    parts = [part for tile in tiles for part in (tile, space)][:-1]
    return np.hstack(parts)


def _same_width(rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Pad rows on the right with white to the widest one."""
    width = max(row.shape[1] for row in rows)
    return [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]


def _even(video: np.ndarray) -> np.ndarray:
    """Pad a video (T, H, W, 3) with white to even height and width."""
    return np.pad(video, ((0, 0), (0, video.shape[1] % 2), (0, video.shape[2] % 2), (0, 0)), constant_values=255)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Load Pillow's built-in outline font, which is the same on every machine."""
    return ImageFont.load_default(size)


def _label(text: str, width: int, height: int, *, bold: bool = False, centered: bool = False) -> np.ndarray:
    """Draw dark text on white, (height, width, 3) uint8, cut with an ellipsis if it does not fit."""
    font = _font(13 if bold else 12)
    picture = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    visible = text
    while len(visible) > 1 and draw.textlength(visible, font=font) > width - 4:
        visible = visible.rstrip("…")[:-1] + "…"
    left = (width - draw.textlength(visible, font=font)) / 2 if centered else 2
    draw.text((left, height / 2), visible, fill=_INK, font=font, anchor="lm")
    if bold:
        draw.text((left + 0.5, height / 2), visible, fill=_INK, font=font, anchor="lm")
    return np.asarray(picture)
