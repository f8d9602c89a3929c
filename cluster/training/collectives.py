"""Collective operations over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster.runtime.all_reduce import average_tensors

T = TypeVar("T")


def average_buffers(modules: Sequence[nn.Module]) -> None:
    """Give every rank the mean of all ranks' batch-norm statistics; integer counters are equal already.

    DeepSpeed synchronizes parameters only. Called before a checkpoint, so that what is saved does not depend on which
    rank saves it.
    """
    if dist.get_world_size() > 1:
        average_tensors([b for module in modules for b in module.buffers() if b.is_floating_point()])


def mean_over_ranks(metrics: dict[str, Tensor], weight: float = 1.0) -> dict[str, float]:
    """Scalars averaged over the ranks, in one collective call. Every rank must call it.

    Args:
        metrics: this rank's scalars.
        weight: of this rank, 1 on average over all (see `weigh`).
    """
    values = torch.stack([value.detach().float().reshape(()) for value in metrics.values()]) * weight
    dist.all_reduce(values)
    return dict(zip(metrics, (values / dist.get_world_size()).tolist(), strict=True))


def any_rank_true(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Which flags are up on any rank. Every rank must call it."""
    if dist.get_world_size() == 1:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(raised, dist.ReduceOp.MAX)
    return [bool(value) for value in raised.tolist()]


def is_rank_zero() -> bool:
    return dist.get_rank() == 0


def broadcast_from_rank_zero(value: T) -> T:
    """What rank 0 holds. Every rank must call it."""
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]
