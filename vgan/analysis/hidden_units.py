"""Activation of hidden units of a discriminator or an encoder (paper section 3.4 and figure 6).

Method of Zhou et al., https://arxiv.org/abs/1412.6856: for each unit the clips with the highest activation, segmented
by the unit's activation map. Shape legend: U units, K clips per unit, T', H', W' sides of an activation map.
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

SHARE = 0.5  # threshold of a segmentation mask over the peak activation in the clip
FADED = 0.2  # contrast of the pixels outside of the mask


@dataclass(frozen=True)
class LayerProbe:
    """First layers of a network, in eval mode, whose output channels are the units.

    Each layer is a convolution of kernel 4 and stride 2. Position i of layer k is centered at 2^k i + (2^k - 1) / 2 in
    the clip; its receptive field is 3 * 2^k - 2 pixels (and frames) wide.
    """

    layers: nn.Sequential

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def num_units(self) -> int:
        """Number of units (U), the output channels of the last layer."""
        convolution: Any = self.layers[-1]
        return int(convolution[0].out_channels)

    @property
    def field(self) -> int:
        """Side of the receptive field, pixels (and frames, if the input is clips)."""
        return 3 * 2**self.depth - 2

    @property
    def sees_images(self) -> bool:
        """True for the encoder of a future model, whose input is the first frame only."""
        first: Any = self.layers[0]
        return isinstance(first[0], nn.Conv2d)

    @torch.inference_mode()
    def maps(self, clips: np.ndarray) -> Tensor:
        """Compute the activation maps (B, U, T', H', W') float32 of clips (B, T, H, W, 3) uint8; T' is 1 for images."""
        video = normalize_clips(torch.from_numpy(clips))
        return self.layers(video[:, :, 0])[:, :, None].float() if self.sees_images else self.layers(video).float()


def make_probe(model: Model, network: str, layer: int) -> LayerProbe:
    """Return the first `layer` layers of a model's discriminator or encoder.

    Args:
        model: a trained model; spectral normalization of the network is removed in place.
        network: discriminator, or encoder (of a future model or an autoencoder).
        layer: number of layers, from 1.

    Raises:
        InputError: the model has no such network, or the network has fewer layers.
    """
    trunk: Any = None
    if network == "discriminator" and model.discriminator is not None:
        trunk = model.discriminator.get_submodule("trunk")
    if network == "encoder" and model.generator is not None and model.config.architecture in ("future", "autoencoder"):
        encoder: Any = model.generator.get_submodule("encoder")
        trunk = encoder if model.config.wide else encoder[0]  # without the last layer, whose output is the code
    if trunk is None:
        raise InputError(
            f"this {model.config.architecture} model has no weights of network={network!r}: choose another network"
        )
    if not 1 <= layer <= len(trunk):
        raise InputError(f"layer must be in 1..{len(trunk)} for the {network} of this model, got {layer}")
    remove_spectral_norm(trunk)
    return LayerProbe(trunk[:layer].eval())


# ---- clips with the highest activation ---------------------------------------------------------------------------


@dataclass(frozen=True)
class TopActivations:
    """The K highest peak activations of each of U units, in descending order, at most one clip per video.

    Also the sums over all clips from which `stands_out` computes the mean and standard deviation of peaks.
    """

    peaks: np.ndarray  # (U, K) float32, -inf if there are fewer than K videos
    rows: np.ndarray  # (U, K) int64, indices of the clips in stored order
    videos: np.ndarray  # (U, K) str, video of each clip
    count: int  # number of clips
    sums: np.ndarray  # (2, U) float64, sums of all peaks and of their squares

    @property
    def stands_out(self) -> np.ndarray:
        """Mean of the K highest peaks minus the mean of all peaks, in standard deviations of all peaks, (U,)."""
        mean, square = self.sums / self.count
        deviation = np.sqrt(np.maximum(square - mean**2, 0))
        finite = np.isfinite(self.peaks)
        highest = np.where(finite, self.peaks, 0).sum(axis=1) / finite.sum(axis=1)
        return (highest - mean) / np.where(deviation > 0, deviation, np.inf)

    def join(self, other: TopActivations) -> TopActivations:
        """Merge with the result for other clips; the order of merging affects only ties between equal peaks."""
        peaks, rows, videos = _select_highest(
            np.concatenate([self.peaks, other.peaks], axis=1),
            np.concatenate([self.rows, other.rows], axis=1),
            np.concatenate([self.videos, other.videos], axis=1),
            num=self.peaks.shape[1],
        )
        return TopActivations(peaks, rows, videos, self.count + other.count, self.sums + other.sums)


def top_activations(maps: Tensor, rows: np.ndarray, videos: np.ndarray, num: int) -> TopActivations:
    """Select the `num` clips with the highest peak activation of each unit among B clips.

    Args:
        maps: activation maps (B, U, T', H', W') of `Probe.maps`.
        rows: indices of the clips in stored order, (B,) int64.
        videos: video of each clip, (B,) str.
        num: maximum number of clips per unit (K).
    """
    peaks = maps.amax(dim=(2, 3, 4)).T.numpy()  # (U, B)
    highest = _select_highest(peaks, np.broadcast_to(rows, peaks.shape), np.broadcast_to(videos, peaks.shape), num=num)
    exact = peaks.astype(np.float64)
    return TopActivations(*highest, len(rows), np.stack([exact.sum(axis=1), np.square(exact).sum(axis=1)]))


def _select_highest(
    peaks: np.ndarray, rows: np.ndarray, videos: np.ndarray, num: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Select the `num` highest peaks of each unit, at most one per video, padded with -inf.

    Args:
        peaks: (U, B) float32.
        rows: (U, B) int64.
        videos: (U, B) str.
        num: K.

    Returns:
        Peaks, rows and videos, (U, K) each.
    """
    order = np.argsort(-peaks, axis=1, kind="stable")
    peaks, rows, videos = (np.take_along_axis(array, order, axis=1) for array in (peaks, rows, videos))
    repeated = np.zeros(peaks.shape, bool)
    for rank in range(1, peaks.shape[1]):
        repeated[:, rank] = (videos[:, :rank] == videos[:, rank, None]).any(axis=1)
    peaks = np.where(repeated, np.float32(-np.inf), peaks)
    order = np.argsort(-peaks, axis=1, kind="stable")[:, :num]
    peaks, rows, videos = (np.take_along_axis(array, order, axis=1) for array in (peaks, rows, videos))
    missing = num - peaks.shape[1]
    if missing > 0:
        pad = ((0, 0), (0, missing))
        peaks = np.pad(peaks, pad, constant_values=-np.inf)
        rows, videos = np.pad(rows, pad), np.pad(videos, pad)
    return peaks.astype(np.float32), rows, videos


# ---- segmentation of a unit's activation -------------------------------------------------------------------------


def activation_masks(maps: Tensor, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Segment the pixels of clips that activate a unit, and return the frame of its peak.

    Args:
        maps: activation maps (K, T', H', W') of one unit.
        shape: (T, H, W) of the clips.

    Returns:
        Masks (K, T, H, W) bool, true where the map, interpolated to the clip's size with centers aligned, is above
        SHARE of its peak; and the frame of the peak, (K,) int64.
    """
    scaled = F.interpolate(maps[:, None], shape, mode="trilinear", align_corners=False)[:, 0]
    peak = scaled.amax(dim=(1, 2, 3))
    masks = scaled > SHARE * peak.clamp(min=0)[:, None, None, None]
    return masks.numpy(), scaled.amax(dim=(2, 3)).argmax(dim=1).numpy()


def fade_background(clips: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return clips (K, T, H, W, 3) uint8 whose contrast is reduced outside of masks (K, T, H, W) bool."""
    pale = (clips.astype(np.float32) - 255) * FADED + 235
    return np.where(masks[..., None], clips, pale.astype(np.uint8))


def motion_share(probe: LayerProbe, clips: np.ndarray, frames: np.ndarray, unit: int) -> float:
    """Compute the share of a unit's peak activation that depends on motion, 0..1.

    It is 1 minus the ratio of the activation on a static clip, in which the frame of the peak is repeated, to the
    activation on the clip, both at the position of the peak.

    Args:
        probe: layers with the unit.
        clips: (K, T, H, W, 3) uint8.
        frames: frames of the peaks, (K,) int.
        unit: index of the unit.
    """
    static = np.stack([np.repeat(clip[[frame]], len(clip), axis=0) for clip, frame in zip(clips, frames, strict=True)])
    maps, static_maps = (probe.maps(video)[:, unit].flatten(1) for video in (clips, static))
    positions = maps.argmax(dim=1, keepdim=True)
    moving, held = (m.gather(1, positions).clamp(min=0).mean() for m in (maps, static_maps))
    return float((1 - held / moving).clamp(0, 1)) if moving > 0 else 0.0
