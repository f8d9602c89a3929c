"""A network with its optimizer, in one process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from vgan.training.config import ObjectiveConfig


class Engine(Protocol):
    """A network and its optimizer: DeepSpeed's engine, or LocalEngine."""

    @property
    def module(self) -> nn.Module:
        """The network."""
        ...

    def backward(self, loss: Tensor) -> object:
        """Add the gradient of a scalar loss to the gradients of the parameters."""
        ...

    def step(self) -> object:
        """Count one piece of a batch; after the last piece update the parameters and clear the gradients."""
        ...


class LocalEngine:
    """Engine of a single process without sharding, for tests and notebooks."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, pieces: int = 1) -> None:
        """Wrap a network; `train_step` averages gradients over `pieces` backward passes before a step."""
        self.module = module
        self.optimizer = optimizer
        self._pieces, self._steps = pieces, 0

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar loss over the number of pieces to the gradients of the parameters."""
        (loss / self._pieces).backward()

    def step(self) -> None:
        """Count one piece of a batch; after the last piece update the parameters and clear the gradients."""
        self._steps += 1
        if self._steps % self._pieces == 0:
            self.optimizer.step()
            self.optimizer.zero_grad()


@dataclass(frozen=True)
class WeightedEngine:
    """Engine whose losses are multiplied by `weight`, for a piece of a batch of more or fewer clips than average."""

    engine: Engine
    weight: float

    @property
    def module(self) -> nn.Module:
        """The network."""
        return self.engine.module

    def backward(self, loss: Tensor) -> object:
        """Add the gradient of the weighted loss to the gradients of the parameters."""
        return self.engine.backward(loss * self.weight)

    def step(self) -> object:
        """Call `step` of the engine."""
        return self.engine.step()


def make_optimizer(name: str, network: nn.Module, objective: ObjectiveConfig) -> torch.optim.Adam:
    """Return Adam for the network `name` (paper section 2.4); discriminator_lr_ratio scales the learning rate of D."""
    rate = objective.learning_rate * (objective.discriminator_lr_ratio if name == "discriminator" else 1.0)
    # The fused kernel on a CPU would save 3 % of a step at base 64, but it rounds the last few elements of each tensor
    # differently: ZeRO-1, which concatenates tensors, would no longer be bit-equal to one process.
    fused = next(network.parameters()).is_cuda
    return torch.optim.Adam(
        network.parameters(), lr=rate, betas=(objective.beta1, objective.beta2), fused=fused, foreach=not fused
    )
