"""Scene classification of clips: mean probabilities of a few frames per segment of a shot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from vgan.records import Clip, Reject
from vgan.scenes.config import SceneConfig
from vgan.scenes.labels import category_probabilities, places365_labels, scene_column

DIGITS = 4  # decimals stored of a probability: further ones differ between processors

Classify = Callable[[Sequence[np.ndarray]], np.ndarray]


class SceneClassifier:
    """Batch classifier: views (224, 224, 3) uint8 RGB to probabilities (N, 365) float32."""

    def __init__(self, network: nn.Module, device: str = "cpu") -> None:
        # Channels last is 2.5 times as fast on a CPU.
        self.network = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = device

    @torch.inference_mode()
    def __call__(self, views: Sequence[np.ndarray]) -> np.ndarray:
        """Return the probabilities of the views, in order."""
        pictures = torch.from_numpy(np.stack(views)).to(self.device).permute(0, 3, 1, 2)  # channels stay last in memory
        return self.network(pictures.float()).softmax(1).cpu().numpy()


def add_scene_scores(
    items: Iterable[Clip | Reject], classify: Classify, config: SceneConfig
) -> Iterator[Clip | Reject]:
    """Replace the view of each clip by its scene columns; rejects pass through.

    Clips of one shot that begin within `config.group_duration_s` seconds form a segment. All clips of a segment get the
    mean probabilities of up to `config.frames_per_group` of their views, equally spaced, and are yielded when the
    segment is complete.

    Args:
        items: clips with views, in order, and rejects.
        classify: maps views to probabilities (N, 365).
        config: scene settings.
    """
    segment: list[Clip] = []
    for item in items:
        if isinstance(item, Reject):
            yield item
            continue
        if segment and (item.shot != segment[0].shot or item.start_s - segment[0].start_s >= config.group_duration_s):
            yield from _with_scenes(segment, classify, config)
            segment = []
        segment.append(item)
    if segment:
        yield from _with_scenes(segment, classify, config)


def _with_scenes(segment: list[Clip], classify: Classify, config: SceneConfig) -> Iterator[Clip]:
    """Classify a segment's views and return its clips with the common scene columns."""
    indices = np.linspace(0, len(segment) - 1, min(config.frames_per_group, len(segment))).round().astype(int)
    views = [view for index in indices if (view := segment[index].view) is not None]
    columns = scene_columns(classify(views).mean(0), config.categories)
    return (replace(clip, view=None, scenes=columns) for clip in segment)


def scene_columns(probabilities: np.ndarray, categories: list[str]) -> dict[str, Any]:
    """Return the dataset columns of label probabilities (365,): best label, its probability, and each category's."""
    best = int(probabilities.argmax())
    category_scores = category_probabilities(probabilities[None], categories)[0]
    return {
        "scene": places365_labels()[best],
        "scene_score": round(float(probabilities[best]), DIGITS),
        **{scene_column(c): round(float(p), DIGITS) for c, p in zip(categories, category_scores, strict=True)},
    }
