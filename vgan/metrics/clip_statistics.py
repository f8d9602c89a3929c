"""Mergeable statistics of a set of clips, so that parts of the set can be measured in different processes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vgan.metrics.extractors import Extractor
from vgan.metrics.frechet import (
    Interval,
    frechet_bias,
    frechet_interval,
    kernel_interval,
    mean_interval,
    protocol_name,
    statistic_name,
)
from vgan.metrics.motion import RunningMoments, flicker, mask_statistics, motion, spectral_centroid, spectrum
from vgan.metrics.nearest_neighbors import block_means
from vgan.models.pretrained import GeneratedClips


@dataclass(frozen=True)
class ClipStatistics:
    """Features and statistics of N clips."""

    shape: tuple[int, int]  # frames per clip; height and width, pixels
    features: np.ndarray  # (N, D) float32; (N, 0) without an extractor
    coarse: np.ndarray  # (N, 1536) float32, means of blocks
    scores: dict[str, np.ndarray]  # (N,) float64 by name of the statistic
    spectra: np.ndarray  # (N, T // 2) float64, shares of the temporal power
    sums: RunningMoments

    @property
    def num(self) -> int:
        """Number of clips (N)."""
        return len(self.coarse)

    def statistics(self, seed: int) -> dict[str, Interval]:
        """Compute means over clips with 95 % intervals by protocol name; the diversity has no interval (NaN)."""
        frames, size = self.shape
        intervals = {name: mean_interval(values, seed) for name, values in self.scores.items()}
        intervals["diversity"] = Interval(self.sums.diversity(), np.nan, np.nan)
        protocol = {"num": self.num, "resolution": size, "num_frames": frames}
        return {statistic_name(name, **protocol): value for name, value in intervals.items()}

    def spectrum(self) -> list[float]:
        """Return mean shares of the temporal power at 1, 2, ... T // 2 cycles per clip."""
        return [float(share) for share in self.spectra.mean(axis=0)]


def compute_statistics(clips: GeneratedClips, extractor: Extractor | None, device: str = "cpu") -> ClipStatistics:
    """Compute the statistics and features of clips.

    motion (0..255), frequency (mean, cycles per frame), flicker (0..255), and `mask_statistics` if there are masks.

    Args:
        clips: video (N, T, H, W, 3) uint8, and masks (N, T, H, W) in [0, 1] or None.
        extractor: feature extractor; None: no features.
        device: device of the extractor, e.g. cpu or cuda.
    """
    video = clips.video
    spectra = spectrum(video)
    scores = {
        "motion": motion(video),
        "frequency": spectral_centroid(spectra, video.shape[1]),
        "flicker": flicker(video),
    }
    if clips.mask is not None:
        scores |= mask_statistics(clips.mask, video)
    features = np.empty((len(video), 0), np.float32) if extractor is None else extractor.features(video, device)
    return ClipStatistics(
        (video.shape[1], video.shape[2]), features, block_means(video), scores, spectra, RunningMoments.of(video)
    )


def distribution_distances(
    real: ClipStatistics, drawn: ClipStatistics, extractor: Extractor, reference: str, *, seed: int, repeats: int
) -> dict[str, Interval]:
    """Compute Fréchet and kernel distance of two sets of equally many clips, with 95 % intervals, by protocol name.

    fvd-bias is the part of the Fréchet distance due to the number of clips (`frechet_bias`), which is also the expected
    distance of two samples of one distribution.
    """
    assert real.num == drawn.num
    assert real.shape == drawn.shape
    pair = (real.features, drawn.features)
    intervals = {
        "fvd": frechet_interval(*pair, seed, repeats),
        "fvd-bias": Interval(frechet_bias(*pair, seed), np.nan, np.nan),
        "kvd": kernel_interval(*pair, seed, repeats),
    }
    protocol: dict[str, Any] = {
        "num": drawn.num,
        "extractor": extractor.name,
        "resolution": extractor.resolution,
        "reference": reference,
        "num_frames": drawn.shape[0],
    }
    return {protocol_name(name, **protocol): value for name, value in intervals.items()}


def concatenate(parts: Sequence[ClipStatistics]) -> ClipStatistics:
    """Concatenate the statistics of parts of a set of clips, in order."""
    first = parts[0]
    sums = first.sums
    for part in parts[1:]:
        sums += part.sums
    return ClipStatistics(
        first.shape,
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.coarse for part in parts]),
        {name: np.concatenate([part.scores[name] for part in parts]) for name in first.scores},
        np.concatenate([part.spectra for part in parts]),
        sums,
    )


# ---- files -------------------------------------------------------------------------------------------------------

REVISION = 1  # increase it whenever the result of `compute_statistics` for the same clips changes


def to_npz(seen: ClipStatistics) -> bytes:
    """Serialize a look as the bytes of an npz file, for `from_npz`."""
    arrays: dict[str, Any] = {f"score-{name}": values for name, values in seen.scores.items()}
    arrays |= {"shape": np.array(seen.shape), "features": seen.features, "coarse": seen.coarse, "spectra": seen.spectra}
    arrays |= {"num": np.array(seen.sums.num), "sums": seen.sums.values, "squares": seen.sums.squares}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def from_npz(data: bytes) -> ClipStatistics:
    """Read a look from the bytes of an npz file; nothing is unpickled."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return ClipStatistics(
            (int(arrays["shape"][0]), int(arrays["shape"][1])),
            arrays["features"],
            arrays["coarse"],
            {name.removeprefix("score-"): arrays[name] for name in arrays.files if name.startswith("score-")},
            arrays["spectra"],
            RunningMoments(int(arrays["num"]), arrays["sums"], arrays["squares"]),
        )
