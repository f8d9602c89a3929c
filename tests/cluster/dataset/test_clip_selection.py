"""Clips are selected for training by their stored scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cluster.dataset.clip_selection import quality_mask
from cluster.dataset.manifest import Manifest
from vgan.errors import InputError


def test_quality_mask_marks_clips_within_the_share_of_the_strict_bounds(
    write_dataset: Callable[..., Manifest], tmp_path: Path
) -> None:
    manifest = write_dataset(str(tmp_path))  # clip n has motion n, of at most 40, and quality 1 / (1 + n / 40)
    assert np.flatnonzero(quality_mask(str(tmp_path), manifest, 0.8)).tolist() == list(range(1, 11))
    assert np.flatnonzero(quality_mask(str(tmp_path), manifest, 0.5)).tolist() == list(range(1, 12))
    assert quality_mask(str(tmp_path), manifest, 0.0).all()


def test_quality_mask_without_any_clip_names_the_setting(
    write_dataset: Callable[..., Manifest], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="lower min_quality="):
        quality_mask(str(tmp_path), write_dataset(str(tmp_path)), 0.999)
