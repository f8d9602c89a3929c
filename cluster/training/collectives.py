"""Collective operations over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def average_buffers(modules: Sequence[nn.Module]) -> None:
    """Replace batch-norm statistics by their mean over all ranks; integer counters are already equal.

    DeepSpeed synchronizes parameters only. Called before a checkpoint, so that its contents do not depend on the rank
    that writes it.
    """
    if dist.get_world_size() == 1:
        return
    buffers = [b for module in modules for b in module.buffers() if b.is_floating_point()]
    flat = torch.cat([b.reshape(-1) for b in buffers])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def mean_over_ranks(metrics: dict[str, Tensor], weight: float = 1.0) -> dict[str, float]:
    """Average scalars over all ranks in one collective call. Every rank must call it.

    Args:
        metrics: scalars of this rank.
        weight: weight of this rank; the mean over all ranks is 1 (see `weigh`).
    """
    values = torch.stack([value.detach().float().reshape(()) for value in metrics.values()]) * weight
    dist.all_reduce(values)
    return dict(zip(metrics, (values / dist.get_world_size()).tolist(), strict=True))


def any_rank_true(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Reduce flags over all ranks with a logical or. Every rank must call it."""
    if dist.get_world_size() == 1:
        return list(flags)
    reduced = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(reduced, dist.ReduceOp.MAX)
    return [bool(value) for value in reduced.tolist()]


def is_rank_zero() -> bool:
    """Return True on rank 0 of the process group."""
    return dist.get_rank() == 0


def broadcast_from_rank_zero(value: T) -> T:
    """Broadcast the value of rank 0 to all ranks. Every rank must call it."""
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]
