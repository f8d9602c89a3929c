"""Exponential moving average of the generator's weights."""

from __future__ import annotations

import torch
from torch import nn


def ema_decay_at(decay: float, step: int) -> float:
    """The moving average's decay at a step, counted from 1: smaller at first, so that the start is soon forgotten.

    As https://www.tensorflow.org/api_docs/python/tf/train/ExponentialMovingAverage has it.
    """
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_ema(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move an exponential moving average of a network one step.

    Batch norm's statistics are averaged too: those of the network itself are not the average's. Counters are copied.
    """
    slow, fast = ([*net.parameters(), *net.buffers()] for net in (average, module))
    for kept, current in zip(slow, fast, strict=True):
        if kept.is_floating_point():
            kept.lerp_(current.to(kept.dtype), 1 - decay)
        else:
            kept.copy_(current)
