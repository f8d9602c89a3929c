"""Exponential moving average of the generator's weights."""

from __future__ import annotations

import torch
from torch import nn


def ema_decay_at(decay: float, step: int) -> float:
    """Return the decay of the moving average at a step, counted from 1.

    It starts lower, so that the initial weights lose their influence early. Formula:
    https://www.tensorflow.org/api_docs/python/tf/train/ExponentialMovingAverage
    """
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_ema(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Update an exponential moving average of a network, in place.

    The running statistics of batch norm are averaged as well, because those of the network do not fit the averaged
    weights. Integer buffers (counters) are copied.
    """
    average_tensors, module_tensors = ([*net.parameters(), *net.buffers()] for net in (average, module))
    for target, current in zip(average_tensors, module_tensors, strict=True):
        if target.is_floating_point():
            target.lerp_(current.to(target.dtype), 1 - decay)
        else:
            target.copy_(current)
