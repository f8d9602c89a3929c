"""One step of training, in terms of engines (paper sections 2.4, 3.2 and 3.4).

An engine holds one network and its optimizer. The pair of updates below is the only one that is exact under every
way DeepSpeed shards optimizer state: D sums its two losses before its one backward pass, because a second backward
pass overwrites the reduced gradient of the first; G's gradient passes through a D whose parameters are frozen,
because it would otherwise be added to D's next step. Both faults are silent;
tests/cluster/training/test_engines.py pins this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vgan.models.config import ModelConfig
from vgan.models.generator import GeneratorOutput
from vgan.training.augment import NUM_DRAWS, augment, horizontal_flip
from vgan.training.config import ObjectiveConfig
from vgan.training.engine import Engine, WeightedEngine
from vgan.training.losses import (
    discriminator_loss,
    frame_loss,
    generator_loss,
    logit_margin,
    mask_prior,
    nearest_match_loss,
    r1_penalty,
    reconstruction_loss,
)


@dataclass(frozen=True)
class StepRandomness:
    """All that is random in one step: a pure function of seed and step, the same however many workers share it."""

    z: Tensor  # (B, Z) normal
    mirrored: Tensor  # (B,) bool
    augment_real: Tensor  # (B, NUM_DRAWS) uniform
    augment_fake: Tensor  # (B, NUM_DRAWS) uniform

    @classmethod
    def of_step(cls, seed: int, step: int, batch_size: int, z_size: int) -> StepRandomness:
        """The draws of a whole global batch."""
        g = torch.Generator().manual_seed(seed * 1_000_003 + step)
        z = torch.randn(batch_size, z_size, generator=g)
        mirrored = torch.rand(batch_size, generator=g) < 0.5
        real, fake = (torch.rand(batch_size, NUM_DRAWS, generator=g) for _ in range(2))
        return cls(z, mirrored, real, fake)

    def share(self, rank: int, world_size: int, device: torch.device | str = "cpu") -> StepRandomness:
        """A rank's share; the first ones hold a clip more where the batch does not divide."""
        parts = (
            t.tensor_split(world_size)[rank] for t in (self.z, self.mirrored, self.augment_real, self.augment_fake)
        )
        return StepRandomness(*(part.to(device) for part in parts))


@dataclass(frozen=True)
class StepResult:
    """What one step did: scalars by metric name, detached, and the clips it drew, for whoever wants to look."""

    metrics: dict[str, Tensor]
    streams: GeneratorOutput


def train_step(
    engines: Mapping[str, Engine],
    real: Tensor,
    draws: StepRandomness,
    model: ModelConfig,
    objective: ObjectiveConfig,
    pieces: int = 1,
) -> StepResult:
    """One step of every network of `vgan.models.make_networks` on real clips (B, 3, T, H, W) in [-1, 1].

    D's step comes first, then G's against the updated D; one pass of G serves both, as in the published code.

    Args:
        pieces: the batch is taken in so many, one after the other, whose gradients are averaged before a step, so that
            only one needs memory at a time. Each has batch statistics of its own, and its own clips to match; G draws
            each twice, once for D, whose step has to come first, and again for itself, so that its running statistics
            move twice as well. Engines must have been made for as many.
    """
    if objective.horizontal_flip:
        real = horizontal_flip(real, draws.mirrored)
    shares = []
    for i, clips in enumerate(real.tensor_split(pieces)):
        weight = len(clips) * pieces / len(real)
        by_name = engines if pieces == 1 else {name: WeightedEngine(engine, weight) for name, engine in engines.items()}
        shares.append((by_name, clips, draws.share(i, pieces, real.device)))
    if model.architecture == "autoencoder":
        return _merge_microbatches([update_autoencoder(by_name["generator"], clips) for by_name, clips, _ in shares])
    firsts = []
    for by_name, clips, share in shares:
        with torch.set_grad_enabled(pieces == 1):
            streams, seen = _generate(by_name["generator"], clips, share, model, objective)
        shown = augment(clips, share.augment_real, objective.augment)
        metrics = update_discriminator(by_name["discriminator"], shown, seen.detach(), objective)
        firsts.append((metrics, (streams, seen) if pieces == 1 else None))
    # The published future model has no prior on its mask; an anchored one is not the published code's anyway.
    mask_weight = 0.0 if model.wide and not objective.mask_target else objective.mask_weight
    steps = []
    for (by_name, clips, share), (metrics, drawn) in zip(shares, firsts, strict=True):
        G, D = by_name["generator"], by_name["discriminator"]
        streams, seen = drawn or _generate(G, clips, share, model, objective)
        image, near = (clips[:, :, 0], None) if model.architecture == "future" else (None, clips)
        metrics |= update_generator(G, D, streams, seen, objective, mask_weight=mask_weight, image=image, real=near)
        steps.append(StepResult(metrics, streams))
    return _merge_microbatches(steps)


def _generate(
    G: Engine, real: Tensor, draws: StepRandomness, model: ModelConfig, objective: ObjectiveConfig
) -> tuple[GeneratorOutput, Tensor]:
    """What G draws, and the clips among it as D sees them: augmented once, though D sees them twice."""
    streams: GeneratorOutput = G.module(real[:, :, 0] if model.architecture == "future" else draws.z)
    return streams, augment(streams.video, draws.augment_fake, objective.augment)


def _merge_microbatches(steps: list[StepResult]) -> StepResult:
    """The pieces of a step as one: clips put together, metrics averaged over clips.

    A piece's gradient is counted by its share already: the sum of norms is the mean norm of the pieces' gradients.
    """
    if len(steps) == 1:
        return steps[0]
    counts = torch.tensor([float(len(step.streams.video)) for step in steps])
    shares = (counts / counts.sum()).tolist()
    metrics = {
        k: torch.stack(
            [(1 if k.startswith("gradient/") else s) * step.metrics[k] for s, step in zip(shares, steps, strict=True)]
        ).sum()
        for k in steps[0].metrics
    }
    video = torch.cat([step.streams.video.detach() for step in steps])
    others = [
        None if part[0] is None else torch.cat([clips.detach() for clips in part])
        for part in zip(*(step.streams[1:] for step in steps), strict=True)
    ]
    return StepResult(metrics, GeneratorOutput(video, *others))


def update_discriminator(D: Engine, real: Tensor, fake: Tensor, objective: ObjectiveConfig) -> dict[str, Tensor]:
    """One step of D on real and drawn clips (B, 3, T, H, W) as it sees them: separate passes keep batch statistics
    apart."""
    real = real.detach().requires_grad_(objective.r1_weight > 0)
    real_logits, fake_logits = D.module(real), D.module(fake)
    loss = discriminator_loss(real_logits, fake_logits, objective.loss)
    metrics = {"loss/discriminator": loss.detach()}
    if objective.r1_weight:
        penalty = r1_penalty(real, real_logits)
        loss = loss + objective.r1_weight * penalty
        metrics["loss/r1"] = penalty.detach()
    with gradient_norm(D.module) as squares:
        D.backward(loss)
    D.step()
    real_margin, fake_margin = logit_margin(real_logits.detach()), logit_margin(fake_logits.detach())
    return metrics | {
        "discriminator/accuracy_real": (real_margin > 0).float().mean(),
        "discriminator/accuracy_fake": (fake_margin <= 0).float().mean(),
        "discriminator/margin": real_margin.mean() - fake_margin.mean(),
        "gradient/discriminator": _norm(squares),
    }


def update_generator(
    G: Engine,
    D: Engine,
    streams: GeneratorOutput,
    seen: Tensor,
    objective: ObjectiveConfig,
    *,
    mask_weight: float,
    image: Tensor | None = None,
    real: Tensor | None = None,
) -> dict[str, Tensor]:
    """One step of G on the clips it drew; D is not changed.

    Args:
        seen: the drawn clips (B, 3, T, H, W) as D sees them, with their graph.
        image: (B, 3, H, W), what the clips should begin with.
        real: (B, 3, T, H, W), what some of the clips should be near to.
    """
    metrics: dict[str, Tensor] = {}
    with freeze_parameters(D.module):
        loss = generator_loss(D.module(seen), objective.loss)
        metrics["loss/generator"] = loss.detach()
        if streams.mask is not None and mask_weight:
            loss = loss + mask_weight * mask_prior(streams.mask, objective.mask_target)
        if real is not None and objective.nearest_match_weight:
            near = nearest_match_loss(real, streams.video)
            loss = loss + objective.nearest_match_weight * near
            metrics["loss/match"] = near.detach()
        if image is not None:
            start = frame_loss(image, streams.video, objective.first_frame_loss)
            loss = loss + objective.first_frame_weight * start
            metrics["loss/first_frame"] = start.detach()
            if objective.background_weight and streams.background is not None:
                still = frame_loss(image, streams.background, objective.first_frame_loss)
                loss = loss + objective.background_weight * still
                metrics["loss/background"] = still.detach()
        with gradient_norm(G.module) as squares:
            G.backward(loss)
    G.step()
    return metrics | {"gradient/generator": _norm(squares)}


def update_autoencoder(A: Engine, real: Tensor) -> StepResult:
    """One step of the baseline's autoencoder on clips (B, 3, T, H, W) in [-1, 1]."""
    streams: GeneratorOutput = A.module(real)
    loss = reconstruction_loss(real, streams.video)
    with gradient_norm(A.module) as squares:
        A.backward(loss)
    A.step()
    return StepResult({"loss/reconstruction": loss.detach(), "gradient/generator": _norm(squares)}, streams)


@contextmanager
def freeze_parameters(module: nn.Module) -> Iterator[None]:
    """Let gradients pass through a network without reaching its parameters."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


@contextmanager
def gradient_norm(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect each parameter's squared gradient norm during a backward pass: this process's own gradients, before any
    engine reduces, shards or clears them."""
    squares: list[Tensor] = []

    def collect(gradient: Tensor) -> None:
        squares.append(torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32).square())

    hooks: list[Any] = [p.register_hook(collect) for p in module.parameters() if p.requires_grad]
    try:
        yield squares
    finally:
        for hook in hooks:
            hook.remove()


def _norm(squares: list[Tensor]) -> Tensor:
    return torch.stack(squares).sum().sqrt()
