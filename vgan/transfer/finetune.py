"""Fine-tune a clip classifier (paper section 3.3): every layer trained, softmax cross entropy.

Pure torch on tensors in memory; what the model is, and where its weights come from, is the caller's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vgan.augment import NUM_DRAWS, augment, mirror
from vgan.config import FinetuneConfig
from vgan.video.pixels import batch_to_model_range


def _alone(_: Sequence[Tensor]) -> None:
    """There is nobody to take a mean with."""


@dataclass(frozen=True, kw_only=True)
class Team:
    """This process among those that share each batch; alone by default."""

    rank: int = 0
    size: int = 1
    average: Callable[[Sequence[Tensor]], None] = _alone  # tensors to their means over all, in place


ALONE = Team()


def finetune(
    model: nn.Module,
    clips: Tensor,
    labels: Tensor,
    config: FinetuneConfig,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    team: Team = ALONE,
) -> tuple[float, ...]:
    """Train `model` in place for `config.iterations` steps of AdamW; the loss of every step.

    The number of steps is the same for every label fraction. Parameters that require no gradient stay as they are,
    while batch norm statistics still move. The same seed gives the same result on the same device; the caller's random
    state is untouched.

    Args:
        model: maps (B, 3, T, H, W) float32 in [-1, 1] to logits (B, K); dropout is its own.
        clips: (N, T, H, W, 3) uint8.
        labels: (N,) int64 in 0..K-1.
        team: who else trains on a share of each batch. All must begin with the same weights; batch norm sees the
            process's own share, and its running statistics become the mean of all at the end.

    Raises:
        ValueError: clips and labels do not fit each other, or there are none.
        FloatingPointError: the loss is not finite; names the step.
    """
    _check_clips(clips, labels)
    target = torch.device(device)
    model.to(target)
    with torch.random.fork_rng(devices=[target] if target.type == "cuda" else []):
        torch.manual_seed(seed + 1_000_003 * team.rank)  # for dropout; the order has a generator of its own
        losses = tuple(_train(model, clips, labels, config, seed, target, team))
    team.average([buffer for buffer in model.buffers() if buffer.is_floating_point()])
    return losses


def batch_order(num_clips: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Endless index batches (batch_size,) int64: one shuffle of all clips after another, cut across the seams.

    Every batch is full, so a small label fraction sees each clip more often rather than smaller batches.
    """
    generator = torch.Generator().manual_seed(seed)
    queue = torch.empty(0, dtype=torch.int64)
    while True:
        while len(queue) < batch_size:
            queue = torch.cat([queue, torch.randperm(num_clips, generator=generator)])
        yield queue[:batch_size]
        queue = queue[batch_size:]


def _train(
    model: nn.Module,
    clips: Tensor,
    labels: Tensor,
    config: FinetuneConfig,
    seed: int,
    device: torch.device,
    team: Team,
) -> list[float]:
    """`config.iterations` steps; the loss of each."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=config.learning_rate, betas=(config.beta1, 0.999), weight_decay=config.weight_decay
    )
    draws = torch.Generator().manual_seed(seed + 1)  # of what changes clips
    model.train()
    losses: list[float] = []
    batches = batch_order(len(clips), config.batch_size, seed)
    for step, batch in zip(range(1, config.iterations + 1), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(config.schedule, step, config.iterations)
        own, drawn = (
            t.tensor_split(team.size)[team.rank]
            for t in (batch, torch.rand(len(batch), 1 + NUM_DRAWS, generator=draws))
        )
        video = shown(clips[own].to(device), drawn.to(device), config)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            logits = model(video)
        loss = F.cross_entropy(logits.float(), labels[own].to(device))
        loss = loss * (len(own) * team.size / len(batch))  # every clip counts alike, whoever holds it
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        value = loss.detach()
        team.average([value, *(p.grad for p in trained if p.grad is not None)])
        if not value.isfinite():
            raise FloatingPointError(f"fine-tuning loss is {float(value)} at step {step}")
        optimizer.step()
        losses.append(float(value))
    return losses


def shown(frames: Tensor, draws: Tensor, config: FinetuneConfig) -> Tensor:
    """Training clips (B, T, H, W, 3) uint8 as a step shows them: (B, 3, T, H, W) float32 in [-1, 1].

    The channels stay last in memory: a step takes 0.75 of the time at base 16 on a CPU. Bytes are mirrored, not floats.

    Args:
        draws: uniform numbers (B, 1 + NUM_DRAWS) in [0, 1).
    """
    if config.flip:
        frames = mirror(frames.movedim(-1, 1), draws[:, 0] < 0.5).movedim(1, -1)
    return augment(batch_to_model_range(frames, torch.channels_last_3d), draws[:, 1:], config.augment)


def schedule(name: str, step: int, steps: int) -> float:
    """The step size over the first one, at a step of 1..steps."""
    return 1.0 if name == "constant" else 0.5 + 0.5 * math.cos(math.pi * (step - 1) / steps)


def _check_clips(clips: Tensor, labels: Tensor) -> None:
    if clips.ndim != 5 or clips.shape[-1] != 3 or clips.dtype != torch.uint8 or not len(clips):
        raise ValueError(f"clips must be (N, T, H, W, 3) uint8 with N above 0, got {tuple(clips.shape)} {clips.dtype}")
    if labels.shape != clips.shape[:1] or labels.dtype != torch.int64 or int(labels.min()) < 0:
        raise ValueError(f"labels must be ({len(clips)},) int64 from 0, got {tuple(labels.shape)} {labels.dtype}")
