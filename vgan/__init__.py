"""Scene dynamics: stabilized clips from video, and the networks that are trained on them.

model = vgan.load("out/runs/gan/step_00001000_a1b2c3")
clips = model.sample(16, seed=0)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vgan.models.pretrained import GeneratedClips, Model, load, save

__all__ = ["GeneratedClips", "Model", "load", "save"]


def __getattr__(name: str) -> Any:
    """Import an exported name on first use: importing torch takes seconds, and decoder processes start without it."""
    if name in __all__:
        return getattr(import_module("vgan.models.pretrained"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
