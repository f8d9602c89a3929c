"""Statistics of sets of clips: merging of parts, files, distances and extractors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vgan.errors import InputError
from vgan.metrics.clip_statistics import (
    ClipStatistics,
    compute_statistics,
    concatenate,
    distribution_distances,
    from_npz,
    to_npz,
)
from vgan.metrics.extractors import Extractor, open_extractor
from vgan.models.pretrained import GeneratedClips

PIXELS = open_extractor("pixels", size=16)


class Colours(nn.Module):
    """Extractor of the mean of every color over the clip and over the last frame."""

    def forward(self, video: Tensor) -> Tensor:
        return torch.cat([video.mean(dim=(2, 3, 4)), video[:, :, -1].mean(dim=(2, 3))], 1)


def drawn(num: int, seed: int = 0, masked: bool = True) -> GeneratedClips:
    rng = np.random.default_rng(seed)
    video = rng.integers(0, 256, (num, 16, 16, 16, 3), np.uint8)
    return GeneratedClips(video, None, rng.random((num, 16, 16, 16), np.float32) if masked else None, None)


def part(clips: GeneratedClips, start: int, end: int) -> GeneratedClips:
    return GeneratedClips(*(None if stream is None else stream[start:end] for stream in clips))


def assert_same(one: ClipStatistics, other: ClipStatistics) -> None:
    assert one.shape == other.shape
    assert one.scores.keys() == other.scores.keys()
    for name in one.scores:
        np.testing.assert_array_equal(one.scores[name], other.scores[name])
    for name in ("features", "coarse", "spectra"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.sums.diversity() == other.sums.diversity()


def test_parts_joined_and_a_file_give_the_look_at_the_whole() -> None:
    clips = drawn(7)
    full = compute_statistics(clips, PIXELS)
    assert_same(
        concatenate([compute_statistics(part(clips, 0, 3), PIXELS), compute_statistics(part(clips, 3, 7), PIXELS)]),
        full,
    )
    assert_same(from_npz(to_npz(full)), full)


def test_statistics_carry_number_resolution_and_frames_in_their_names() -> None:
    result = compute_statistics(drawn(4), None).statistics(seed=0)
    words = ("motion", "frequency", "flicker", "mask-mean", "mask-decided", "mask-follows", "diversity")
    assert set(result) == {f"{word}4_r16_16f" for word in words}
    value, low, high = result["motion4_r16_16f"]
    assert low < value < high
    assert not any("mask" in name for name in compute_statistics(drawn(4, masked=False), None).statistics(seed=0))


def test_distances_are_near_zero_between_equal_sets_and_named_by_protocol() -> None:
    sets = [
        compute_statistics(GeneratedClips(drawn(12, seed).video // scale, None, None, None), PIXELS)
        for seed, scale in ((0, 1), (1, 2))
    ]
    same = distribution_distances(sets[0], sets[0], PIXELS, "toys", seed=0, repeats=5)
    far = distribution_distances(sets[0], sets[1], PIXELS, "toys", seed=0, repeats=5)
    assert set(same) == {f"{word}12_pixels-r16_toys_16f" for word in ("fvd", "fvd-bias", "kvd")}
    assert same["fvd12_pixels-r16_toys_16f"].value == pytest.approx(0, abs=1e-6)
    assert far["fvd12_pixels-r16_toys_16f"].low > 100  # 1,536 values that differ by one half


def test_a_torchscript_program_is_an_extractor(tmp_path: Path) -> None:
    torch.jit.script(Colours()).save(tmp_path / "my colors.pt")
    result = open_extractor(str(tmp_path / "my colors.pt"), resolution=32)
    assert result.name == f"my-colors-{result.digest[:8]}"
    clips = np.zeros((9, 8, 16, 16, 3), np.uint8)
    clips[:, -1, :, :, 0] = 255
    features = result.features(clips)
    np.testing.assert_allclose(features, np.tile([-0.75, -1, -1, 1, -1, -1], (9, 1)), atol=1e-5)


def test_an_extractor_that_is_none_or_gives_nonsense_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(InputError, match="not a TorchScript program"):
        open_extractor(str(tmp_path / "junk.pt"))
    with pytest.raises(InputError, match="no file of I3D weights"):
        open_extractor(str(tmp_path / "nowhere"))
    broken = Extractor("broken", "0", 16, lambda clips, _: np.full((len(clips), 3), np.nan))
    with pytest.raises(InputError, match="finite"):
        broken.features(drawn(2).video)
