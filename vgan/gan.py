"""One step of adversarial training, in terms of two engines (paper section 2.4).

An engine holds one network and its optimizer. The pair of updates below is the only one that is exact under every
way DeepSpeed shards optimizer state: D sums its two losses before its one backward pass, because a second backward
pass overwrites the reduced gradient of the first; G's gradient passes through a D whose parameters are frozen,
because it would otherwise be added to D's next step. Both faults are silent; tests/cluster/test_engines.py pins this.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from vgan.losses import discriminator_loss, generator_loss, mask_prior
from vgan.models.discriminator import FAKE, REAL
from vgan.models.generator import Streams


class Engine(Protocol):
    """A network with its optimizer: DeepSpeed's engine, or LocalEngine."""

    module: nn.Module

    def backward(self, loss: Tensor) -> object: ...
    def step(self) -> object: ...


class LocalEngine:
    """One process, no sharding: what tests and notebooks use in place of DeepSpeed's engine."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module = module
        self.optimizer = optimizer

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


def update(G: Engine, D: Engine, real: Tensor, z: Tensor, mask_weight: float) -> dict[str, Tensor]:
    """One step of D, then one of G, on real clips (B, 3, T, H, W) in [-1, 1] and noise z (B, Z).

    One z and one forward pass of G serve both steps, as in the published code; G's loss is taken against the updated D.

    Returns:
        Scalars by metric name, detached.
    """
    streams = G.module(z)
    metrics = update_discriminator(D, real, streams.video.detach())
    return metrics | update_generator(G, D, streams, mask_weight)


def update_discriminator(D: Engine, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """One step of D on real and generated clips (B, 3, T, H, W); separate passes keep batch statistics apart."""
    real_logits, fake_logits = D.module(real), D.module(fake)
    loss = discriminator_loss(real_logits, fake_logits)
    D.backward(loss)
    D.step()
    return {
        "loss/discriminator": loss.detach(),
        "discriminator/accuracy_real": (real_logits.argmax(1) == REAL).float().mean(),
        "discriminator/accuracy_fake": (fake_logits.argmax(1) == FAKE).float().mean(),
    }


def update_generator(G: Engine, D: Engine, streams: Streams, mask_weight: float) -> dict[str, Tensor]:
    """One step of G on the clips it drew; D is not changed."""
    with frozen(D.module):
        adversarial = generator_loss(D.module(streams.video))
        sparsity = mask_prior(streams.mask)
        G.backward(adversarial + mask_weight * sparsity)
    G.step()
    return {"loss/generator": adversarial.detach(), "mask/mean": sparsity.detach()}


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let gradients pass through a network without reaching its parameters."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


@torch.no_grad()
def update_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move an exponential moving average of a network one step: parameters decay, buffers are copied."""
    for slow, fast in zip(average.parameters(), module.parameters(), strict=True):
        slow.lerp_(fast.to(slow.dtype), 1 - decay)
    for kept, current in zip(average.buffers(), module.buffers(), strict=True):
        kept.copy_(current)
