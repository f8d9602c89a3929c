"""All that an evaluation keeps of clips, so that they can be looked at in parts, wherever those are."""

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
    """What was seen of N clips."""

    shape: tuple[int, int]  # frames of a clip, pixels a side
    features: np.ndarray  # (N, D) float32; (N, 0) without an extractor
    coarse: np.ndarray  # (N, 1536) float32
    scores: dict[str, np.ndarray]  # (N,) float64 by name
    spectra: np.ndarray  # (N, T // 2) float64
    sums: RunningMoments

    @property
    def num(self) -> int:
        return len(self.coarse)

    def statistics(self, seed: int) -> dict[str, Interval]:
        """Means over clips with 95 % intervals, by names that carry the protocol. A diversity has no interval."""
        frames, size = self.shape
        found = {name: mean_interval(values, seed) for name, values in self.scores.items()}
        spread = self.sums.diversity()
        found["diversity"] = Interval(spread, np.nan, np.nan)
        protocol = {"num": self.num, "resolution": size, "num_frames": frames}
        return {statistic_name(name, **protocol): value for name, value in found.items()}

    def spectrum(self) -> list[float]:
        """Mean shares of the temporal power at 1, 2, ... T // 2 cycles a clip."""
        return [float(share) for share in self.spectra.mean(axis=0)]


def compute_statistics(clips: GeneratedClips, extractor: Extractor | None, device: str = "cpu") -> ClipStatistics:
    """Look at clips: motion (0..255), frequency (mean, cycles a frame), flicker (0..255), masks, features."""
    video = clips.video
    spectra = spectrum(video)
    scores = {
        "motion": motion(video),
        "frequency": spectral_centroid(spectra, video.shape[1]),
        "flicker": flicker(video),
    }
    if clips.mask is not None:
        scores |= mask_statistics(clips.mask, video)
    seen = np.empty((len(video), 0), np.float32) if extractor is None else extractor.features(video, device)
    return ClipStatistics(
        (video.shape[1], video.shape[2]), seen, block_means(video), scores, spectra, RunningMoments.of(video)
    )


def distribution_distances(
    real: ClipStatistics, drawn: ClipStatistics, extractor: Extractor, reference: str, *, seed: int, repeats: int
) -> dict[str, Interval]:
    """Fréchet and kernel distance of two looks of equally many clips, with 95 % intervals, by protocol names.

    fvd-bias is what of the first their number accounts for (`frechet_bias`): what equal distributions would show.
    """
    assert real.num == drawn.num
    assert real.shape == drawn.shape
    pair = (real.features, drawn.features)
    found = {
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
    return {protocol_name(name, **protocol): value for name, value in found.items()}


def concatenate(parts: Sequence[ClipStatistics]) -> ClipStatistics:
    """The look at all clips from looks at parts of them, in their order."""
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


# ---- as a file ---------------------------------------------------------------------------------------------------

REVISION = 1  # counts up whenever `look` would see other values of the same clips


def to_npz(seen: ClipStatistics) -> bytes:
    """A look as an npz file, for `from_bytes`."""
    arrays: dict[str, Any] = {f"score-{name}": values for name, values in seen.scores.items()}
    arrays |= {"shape": np.array(seen.shape), "features": seen.features, "coarse": seen.coarse, "spectra": seen.spectra}
    arrays |= {"num": np.array(seen.sums.num), "sums": seen.sums.values, "squares": seen.sums.squares}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def from_npz(data: bytes) -> ClipStatistics:
    """A look out of an npz file's bytes; nothing is unpickled."""
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        return ClipStatistics(
            (int(found["shape"][0]), int(found["shape"][1])),
            found["features"],
            found["coarse"],
            {name.removeprefix("score-"): found[name] for name in found.files if name.startswith("score-")},
            found["spectra"],
            RunningMoments(int(found["num"]), found["sums"], found["squares"]),
        )
