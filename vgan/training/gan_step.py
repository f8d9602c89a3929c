"""One training step of the GAN, the future model and the autoencoder (paper sections 2.4, 3.2 and 3.4).

An engine holds one network and its optimizer. The updates of D and G below are exact under every ZeRO stage of
DeepSpeed: D sums its two losses before its one backward pass, because a second backward pass overwrites the reduced
gradient of the first; G's gradient passes through a D whose parameters are frozen, because it would otherwise be added
to the gradient of D's next step. Neither mistake raises an error; tests/cluster/training/test_engines.py checks for
both.
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
    """All random numbers of one step: a pure function of seed and step, independent of the number of workers."""

    z: Tensor  # (B, Z) standard normal
    mirrored: Tensor  # (B,) bool, true for clips that are flipped horizontally
    augment_real: Tensor  # (B, NUM_DRAWS) uniform in [0, 1)
    augment_fake: Tensor  # (B, NUM_DRAWS) uniform in [0, 1)

    @classmethod
    def of_step(cls, seed: int, step: int, batch_size: int, z_size: int) -> StepRandomness:
        """Draw the random numbers of a global batch."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        z = torch.randn(batch_size, z_size, generator=generator)
        mirrored = torch.rand(batch_size, generator=generator) < 0.5
        real, fake = (torch.rand(batch_size, NUM_DRAWS, generator=generator) for _ in range(2))
        return cls(z, mirrored, real, fake)

    def share(self, rank: int, world_size: int, device: torch.device | str = "cpu") -> StepRandomness:
        """Return the part of one rank; if the batch is not divisible, the first ranks get one clip more."""
        parts = (
            tensor.tensor_split(world_size)[rank]
            for tensor in (self.z, self.mirrored, self.augment_real, self.augment_fake)
        )
        return StepRandomness(*(part.to(device) for part in parts))


@dataclass(frozen=True)
class StepResult:
    """Result of one training step: detached scalars by metric name, and the generated clips."""

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
    """Train every network of `vgan.models.factory.make_networks` for one step (paper section 2.4, equations 1 and 3).

    D is updated first, then G against the updated D; both use one forward pass of G, as in the published code.

    Args:
        engines: engine by network name, created for the same number of pieces.
        real: real clips (B, 3, T, H, W) in [-1, 1].
        draws: random numbers of the B clips.
        model: settings of the networks.
        objective: settings of the losses.
        pieces: gradient accumulation steps per batch, to reduce memory. Each piece has its own batch statistics and its
            own real clips for `nearest_match_loss`. With more than one piece G generates each piece twice, once for the
            update of D, which has to come first, and once for its own, so its running statistics are updated twice as
            well.
    """
    if objective.horizontal_flip:
        real = horizontal_flip(real, draws.mirrored)
    shares = []
    for i, clips in enumerate(real.tensor_split(pieces)):
        weight = len(clips) * pieces / len(real)
        by_name = engines if pieces == 1 else {name: WeightedEngine(engine, weight) for name, engine in engines.items()}
        shares.append((by_name, clips, draws.share(i, pieces, real.device)))
    if model.architecture == "autoencoder":
        return _merge_pieces([update_autoencoder(by_name["generator"], clips) for by_name, clips, _ in shares])
    discriminator_results = []
    for by_name, clips, share in shares:
        with torch.set_grad_enabled(pieces == 1):
            streams, fake = _generate(by_name["generator"], clips, share, model, objective)
        augmented = augment(clips, share.augment_real, objective.augment)
        metrics = update_discriminator(by_name["discriminator"], augmented, fake.detach(), objective)
        discriminator_results.append((metrics, (streams, fake) if pieces == 1 else None))
    # The published code has no mask prior in the future model (main_conditional.lua). It has no mask target at all, so
    # a target enables the prior in that model too.
    mask_weight = 0.0 if model.wide and not objective.mask_target else objective.mask_weight
    steps = []
    for (by_name, clips, share), (metrics, generated) in zip(shares, discriminator_results, strict=True):
        G, D = by_name["generator"], by_name["discriminator"]
        streams, fake = generated or _generate(G, clips, share, model, objective)
        image, matched = (clips[:, :, 0], None) if model.architecture == "future" else (None, clips)
        metrics |= update_generator(G, D, streams, fake, objective, mask_weight=mask_weight, image=image, real=matched)
        steps.append(StepResult(metrics, streams))
    return _merge_pieces(steps)


def _generate(
    G: Engine, real: Tensor, draws: StepRandomness, model: ModelConfig, objective: ObjectiveConfig
) -> tuple[GeneratorOutput, Tensor]:
    """Generate clips from noise or first frames, and augment them once for the updates of both D and G.

    Returns:
        The streams of G, and the augmented clips (B, 3, T, H, W) that D gets.
    """
    streams: GeneratorOutput = G.module(real[:, :, 0] if model.architecture == "future" else draws.z)
    return streams, augment(streams.video, draws.augment_fake, objective.augment)


def _merge_pieces(steps: list[StepResult]) -> StepResult:
    """Merge the results of the pieces of a step: concatenate clips, average metrics over clips.

    The gradient of a piece is already weighted by its number of clips: the sum of the norms is the mean norm of the
    gradients of the pieces.
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
        None if parts[0] is None else torch.cat([clips.detach() for clips in parts])
        for parts in zip(*(step.streams[1:] for step in steps), strict=True)
    ]
    return StepResult(metrics, GeneratorOutput(video, *others))


def update_discriminator(D: Engine, real: Tensor, fake: Tensor, objective: ObjectiveConfig) -> dict[str, Tensor]:
    """Update D once on real and generated clips (paper section 2.1, equation 1).

    Two forward passes keep the batch statistics of real and generated clips separate, as in the published code.

    Args:
        D: engine of the discriminator.
        real: real clips (B, 3, T, H, W) in [-1, 1], augmented.
        fake: generated clips (B, 3, T, H, W) in [-1, 1], augmented and detached.
        objective: settings of the losses.

    Returns:
        Detached scalars by metric name.
    """
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
        "gradient/discriminator": _total_norm(squares),
    }


def update_generator(
    G: Engine,
    D: Engine,
    streams: GeneratorOutput,
    augmented_fake: Tensor,
    objective: ObjectiveConfig,
    *,
    mask_weight: float,
    image: Tensor | None = None,
    real: Tensor | None = None,
) -> dict[str, Tensor]:
    """Update G once on its generated clips, with D frozen (paper sections 2.1, 2.2 and 3.4).

    Args:
        G: engine of the generator.
        D: engine of the discriminator, whose parameters get no gradient.
        streams: output of G, with its graph.
        augmented_fake: the clips of `streams` as D gets them, (B, 3, T, H, W), augmented, with their graph.
        objective: settings of the losses.
        mask_weight: weight of the mask prior (paper section 2.2); 0 disables it.
        image: first frames (B, 3, H, W) in [-1, 1] for the first-frame loss (equation 3); None disables it.
        real: real clips (B, 3, T, H, W) in [-1, 1] for `nearest_match_loss`; None disables it.

    Returns:
        Detached scalars by metric name.
    """
    metrics: dict[str, Tensor] = {}
    with freeze_parameters(D.module):
        loss = generator_loss(D.module(augmented_fake), objective.loss)
        metrics["loss/generator"] = loss.detach()
        if streams.mask is not None and mask_weight:
            loss = loss + mask_weight * mask_prior(streams.mask, objective.mask_target)
        if real is not None and objective.nearest_match_weight:
            match = nearest_match_loss(real, streams.video)
            loss = loss + objective.nearest_match_weight * match
            metrics["loss/match"] = match.detach()
        if image is not None:
            first_frame = frame_loss(image, streams.video, objective.first_frame_loss)
            loss = loss + objective.first_frame_weight * first_frame
            metrics["loss/first_frame"] = first_frame.detach()
            if objective.background_weight and streams.background is not None:
                background = frame_loss(image, streams.background, objective.first_frame_loss)
                loss = loss + objective.background_weight * background
                metrics["loss/background"] = background.detach()
        with gradient_norm(G.module) as squares:
            G.backward(loss)
    G.step()
    return metrics | {"gradient/generator": _total_norm(squares)}


def update_autoencoder(A: Engine, real: Tensor) -> StepResult:
    """Update the baseline's autoencoder once on clips (B, 3, T, H, W) in [-1, 1] (paper section 3.2)."""
    streams: GeneratorOutput = A.module(real)
    loss = reconstruction_loss(real, streams.video)
    with gradient_norm(A.module) as squares:
        A.backward(loss)
    A.step()
    return StepResult({"loss/reconstruction": loss.detach(), "gradient/generator": _total_norm(squares)}, streams)


@contextmanager
def freeze_parameters(module: nn.Module) -> Iterator[None]:
    """Disable the gradients of a network's parameters; gradients still pass through it to its input."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


@contextmanager
def gradient_norm(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the squared gradient norm of each parameter during a backward pass.

    They are the norms of the local gradients of this process, before an engine reduces, shards or clears them.
    """
    squares: list[Tensor] = []

    def collect(gradient: Tensor) -> None:
        squares.append(torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32).square())

    hooks: list[Any] = [p.register_hook(collect) for p in module.parameters() if p.requires_grad]
    try:
        yield squares
    finally:
        for hook in hooks:
            hook.remove()


def _total_norm(squares: list[Tensor]) -> Tensor:
    """Return the norm of all gradients from the squared norms of the parameters' gradients."""
    return torch.stack(squares).sum().sqrt()
