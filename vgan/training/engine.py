"""A network with its optimizer, in one process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from vgan.training.config import ObjectiveConfig


class Engine(Protocol):
    """A network with its optimizer: DeepSpeed's engine, or LocalEngine."""

    @property
    def module(self) -> nn.Module: ...
    def backward(self, loss: Tensor) -> object: ...
    def step(self) -> object: ...


class LocalEngine:
    """One process, no sharding: what tests and notebooks use in place of DeepSpeed's engine."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, pieces: int = 1) -> None:
        """Args: `pieces` of a batch to average gradients over before a step (see `update`)."""
        self.module = module
        self.optimizer = optimizer
        self._pieces, self._seen = pieces, 0

    def backward(self, loss: Tensor) -> None:
        (loss / self._pieces).backward()

    def step(self) -> None:
        self._seen += 1
        if self._seen % self._pieces == 0:
            self.optimizer.step()
            self.optimizer.zero_grad()


@dataclass(frozen=True)
class WeightedEngine:
    """An engine whose losses count `weight` times: of clips whose number is not the average one."""

    engine: Engine
    weight: float

    @property
    def module(self) -> nn.Module:
        return self.engine.module

    def backward(self, loss: Tensor) -> object:
        return self.engine.backward(loss * self.weight)

    def step(self) -> object:
        return self.engine.step()


def make_optimizer(name: str, network: nn.Module, objective: ObjectiveConfig) -> torch.optim.Adam:
    """Adam of the network of that name (paper section 2.4); D may step farther than the others."""
    rate = objective.learning_rate * (objective.discriminator_lr_ratio if name == "discriminator" else 1.0)
    # Fused on a CPU too would save 3 % of a step at base 64, but it rounds the last few of each tensor otherwise, so
    # that ZeRO-1, which lays tensors end to end, would no longer equal one process to the bit.
    fused = next(network.parameters()).is_cuda
    return torch.optim.Adam(
        network.parameters(), lr=rate, betas=(objective.beta1, objective.beta2), fused=fused, foreach=not fused
    )
