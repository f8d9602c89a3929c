"""Clips with the scenes they show: a few pictures of each stretch of a shot, looked at together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from vgan.config import SceneConfig
from vgan.records import Clip, Reject
from vgan.scenes.labels import gather, labels, scene_column

DIGITS = 4  # kept of a probability: below that processors differ

Classify = Callable[[Sequence[np.ndarray]], np.ndarray]


class Classifier:
    """Views (224, 224, 3) uint8 RGB to probabilities (N, 365) float32."""

    def __init__(self, network: nn.Module, device: str = "cpu") -> None:
        # Channels last is 2.5 times as fast on a CPU.
        self.network = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = device

    @torch.inference_mode()
    def __call__(self, views: Sequence[np.ndarray]) -> np.ndarray:
        pictures = torch.from_numpy(np.stack(views)).to(self.device).permute(0, 3, 1, 2)  # channels stay last in memory
        return self.network(pictures.float()).softmax(1).cpu().numpy()


def scored(items: Iterable[Clip | Reject], classify: Classify, config: SceneConfig) -> Iterator[Clip | Reject]:
    """The same items, each clip with its scenes instead of its view. A clip waits until its stretch is over.

    A stretch is the clips of one shot that begin within `config.stretch_s`. All of them get the mean probabilities of
    up to `config.frames` of their views, equally far apart.
    """
    stretch: list[Clip] = []
    for item in items:
        if isinstance(item, Reject):
            yield item
            continue
        if stretch and (item.shot != stretch[0].shot or item.start_s - stretch[0].start_s >= config.stretch_s):
            yield from _with_scenes(stretch, classify, config)
            stretch = []
        stretch.append(item)
    if stretch:
        yield from _with_scenes(stretch, classify, config)


def _with_scenes(stretch: list[Clip], classify: Classify, config: SceneConfig) -> Iterator[Clip]:
    places = np.linspace(0, len(stretch) - 1, min(config.frames, len(stretch))).round().astype(int)
    views = [view for place in places if (view := stretch[place].view) is not None]
    found = scene_columns(classify(views).mean(0), config.categories)
    return (replace(clip, view=None, scenes=found) for clip in stretch)


def scene_columns(probabilities: np.ndarray, categories: list[str]) -> dict[str, Any]:
    """What a dataset keeps of probabilities (365,): the likeliest label, its probability and that of each category."""
    best = int(probabilities.argmax())
    of_categories = gather(probabilities[None], categories)[0]
    return {
        "scene": labels()[best],
        "scene_score": round(float(probabilities[best]), DIGITS),
        **{scene_column(c): round(float(p), DIGITS) for c, p in zip(categories, of_categories, strict=True)},
    }
