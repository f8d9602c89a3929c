"""Hidden units of a discriminator or an encoder: which clips make one fire, and what in them (paper figure 6).

After Zhou et al., https://arxiv.org/abs/1412.6856: of each unit the clips that it fires most for, segmented by where.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vgan.errors import InputError
from vgan.models.layers import remove_spectral_norm
from vgan.models.pretrained import Model
from vgan.video.normalize import normalize_clips

NETWORKS = ("discriminator", "encoder")
SHARE = 0.5  # of its peak in a clip that a unit still counts as firing at
FADED = 0.2  # contrast that is left of what it does not fire at


@dataclass(frozen=True)
class LayerProbe:
    """The first layers of a network, in eval mode; what comes out are the units' maps.

    Each layer halves every side by a convolution of kernel 4, so that position i of layer k is centred at
    2^k i + (2^k - 1) / 2 of the clip and sees 3 * 2^k - 2 pixels (and frames) around it.
    """

    layers: nn.Sequential

    @property
    def depth(self) -> int:
        return len(self.layers)

    @property
    def num_units(self) -> int:
        convolution: Any = self.layers[-1]
        return int(convolution[0].out_channels)

    @property
    def field(self) -> int:
        """Side of the receptive field, pixels, and frames where the network sees clips."""
        return 3 * 2**self.depth - 2

    @property
    def sees_images(self) -> bool:
        """Whether it is a future model's encoder, which sees the first frame alone."""
        first: Any = self.layers[0]
        return isinstance(first[0], nn.Conv2d)

    @torch.inference_mode()
    def maps(self, clips: np.ndarray) -> Tensor:
        """What every unit gives for clips (B, T, H, W, 3) uint8: (B, U, T', H', W') float32, T' = 1 of images."""
        shown = normalize_clips(torch.from_numpy(clips))
        return self.layers(shown[:, :, 0])[:, :, None].float() if self.sees_images else self.layers(shown).float()


def make_probe(model: Model, network: str, layer: int) -> LayerProbe:
    """The first `layer` layers of a model's discriminator or encoder.

    Raises:
        InputError: the model has no such network, or that has not so many layers.
    """
    trunk: Any = None
    if network == "discriminator" and model.discriminator is not None:
        trunk = model.discriminator.get_submodule("trunk")
    if network == "encoder" and model.generator is not None and model.config.architecture in ("future", "autoencoder"):
        encoder: Any = model.generator.get_submodule("encoder")
        trunk = encoder if model.config.wide else encoder[0]  # without the code itself
    if trunk is None:
        raise InputError(
            f"a {model.config.architecture} model without {network} weights was given: network={network!r}"
        )
    if not 1 <= layer <= len(trunk):
        raise InputError(f"layer must be in 1..{len(trunk)} of this {network}, got {layer}")
    remove_spectral_norm(trunk)
    return LayerProbe(trunk[:layer].eval())


# ---- the clips that fire it most ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class TopActivations:
    """For each of U units the K highest peaks, of one clip a video, highest first; and how high peaks are as a rule."""

    peaks: np.ndarray  # (U, K) float32, -inf where there are fewer videos
    rows: np.ndarray  # (U, K) int64, clips in stored order
    videos: np.ndarray  # (U, K) str
    count: int  # clips seen
    sums: np.ndarray  # (2, U) float64, of all peaks and of their squares

    @property
    def stands_out(self) -> np.ndarray:
        """(U,): mean of the highest peaks over that of all clips' peaks, in their standard deviations."""
        mean, square = self.sums / self.count
        spread = np.sqrt(np.maximum(square - mean**2, 0))
        there = np.isfinite(self.peaks)
        highest = np.where(there, self.peaks, 0).sum(axis=1) / there.sum(axis=1)
        return (highest - mean) / np.where(spread > 0, spread, np.inf)

    def join(self, other: TopActivations) -> TopActivations:
        """Of both; in any order of parts the same, but for peaks that equal each other."""
        peaks, rows, videos = _highest(
            np.concatenate([self.peaks, other.peaks], axis=1),
            np.concatenate([self.rows, other.rows], axis=1),
            np.concatenate([self.videos, other.videos], axis=1),
            num=self.peaks.shape[1],
        )
        return TopActivations(peaks, rows, videos, self.count + other.count, self.sums + other.sums)


def top_activations(maps: Tensor, rows: np.ndarray, videos: np.ndarray, num: int) -> TopActivations:
    """The `num` highest of B clips for every unit.

    Args:
        maps: (B, U, T', H', W'), as a probe gives them.
        rows: (B,) int64.
        videos: (B,) str.
        num: K.
    """
    peaks = maps.amax(dim=(2, 3, 4)).T.numpy()  # (U, B)
    found = _highest(peaks, np.broadcast_to(rows, peaks.shape), np.broadcast_to(videos, peaks.shape), num=num)
    wide = peaks.astype(np.float64)
    return TopActivations(*found, len(rows), np.stack([wide.sum(axis=1), np.square(wide).sum(axis=1)]))


def _highest(
    peaks: np.ndarray, rows: np.ndarray, videos: np.ndarray, num: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `num` highest peaks of each unit, the highest of each video alone; filled up with -inf."""
    order = np.argsort(-peaks, axis=1, kind="stable")
    peaks, rows, videos = (np.take_along_axis(each, order, axis=1) for each in (peaks, rows, videos))
    repeated = np.zeros(peaks.shape, bool)
    for place in range(1, peaks.shape[1]):
        repeated[:, place] = (videos[:, :place] == videos[:, place, None]).any(axis=1)
    peaks = np.where(repeated, np.float32(-np.inf), peaks)
    order = np.argsort(-peaks, axis=1, kind="stable")[:, :num]
    peaks, rows, videos = (np.take_along_axis(each, order, axis=1) for each in (peaks, rows, videos))
    missing = num - peaks.shape[1]
    if missing > 0:
        pad = ((0, 0), (0, missing))
        peaks = np.pad(peaks, pad, constant_values=-np.inf)
        rows, videos = np.pad(rows, pad), np.pad(videos, pad)
    return peaks.astype(np.float32), rows, videos


# ---- where it fires ----------------------------------------------------------------------------------------------


def activation_masks(maps: Tensor, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Where a unit fires in clips, and when most.

    Args:
        maps: (K, T', H', W') of the unit alone.
        shape: (T, H, W) of the clips.

    Returns:
        Masks (K, T, H, W) bool, where the map, brought to the clip's scale centre on centre, is above SHARE of its
        peak; and the frame (K,) int64 of the peak.
    """
    wide = F.interpolate(maps[:, None], shape, mode="trilinear", align_corners=False)[:, 0]
    peak = wide.amax(dim=(1, 2, 3))
    masks = wide > SHARE * peak.clamp(min=0)[:, None, None, None]
    return masks.numpy(), wide.amax(dim=(2, 3)).argmax(dim=1).numpy()


def fade_background(clips: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Clips (K, T, H, W, 3) uint8, pale gray outside of masks (K, T, H, W)."""
    pale = (clips.astype(np.float32) - 255) * FADED + 235
    return np.where(masks[..., None], clips, pale.astype(np.uint8))


def motion_share(probe: LayerProbe, clips: np.ndarray, frames: np.ndarray, unit: int) -> float:
    """How much of a unit's peak is owed to motion: 1 minus what is left at its place if its frame is held, 0..1.

    Args:
        probe: whose unit it is.
        clips: (K, T, H, W, 3) uint8.
        frames: (K,) of the peaks, which are held.
        unit: its number.
    """
    still = np.stack([np.repeat(clip[[frame]], len(clip), axis=0) for clip, frame in zip(clips, frames, strict=True)])
    maps, left = (probe.maps(each)[:, unit].flatten(1) for each in (clips, still))
    places = maps.argmax(dim=1, keepdim=True)
    moving, held = (each.gather(1, places).clamp(min=0).mean() for each in (maps, left))
    return float((1 - held / moving).clamp(0, 1)) if moving > 0 else 0.0
