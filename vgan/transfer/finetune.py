"""Fine-tuning of a clip classifier (paper section 3.3): all layers are trained with softmax cross entropy.

Pure torch on tensors in memory; the caller provides the model and its initial weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vgan.training.augment import NUM_DRAWS, augment, horizontal_flip
from vgan.transfer.config import FinetuneConfig
from vgan.video.normalize import normalize_clips


def _no_average(_: Sequence[Tensor]) -> None:
    """Leave the tensors unchanged: a single process has nothing to average."""


@dataclass(frozen=True, kw_only=True)
class WorkerGroup:
    """Rank, size and averaging function of the processes that share each batch; a single process by default."""

    rank: int = 0
    size: int = 1  # number of processes
    average: Callable[[Sequence[Tensor]], None] = _no_average  # in place, over all processes


SINGLE_PROCESS = WorkerGroup()


def finetune(
    model: nn.Module,
    clips: Tensor,
    labels: Tensor,
    config: FinetuneConfig,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    team: WorkerGroup = SINGLE_PROCESS,
) -> tuple[float, ...]:
    """Train `model` in place for `config.iterations` steps of AdamW and return the loss of every step.

    The number of steps is the same for every label fraction. Parameters that require no gradient are not updated, but
    batch norm statistics are. The same seed gives the same result on the same device; the caller's random state is
    restored.

    Args:
        model: maps (B, 3, T, H, W) float32 in [-1, 1] to logits (B, K); it applies its own dropout.
        clips: (N, T, H, W, 3) uint8.
        labels: (N,) int64 in 0..K-1.
        config: optimizer, schedule, batch size and augmentation settings.
        seed: seed of batch order, augmentation and dropout.
        device: device to train on.
        team: processes that share each batch. All must start from the same weights; batch norm uses the process's
            local share of a batch, and its running statistics are averaged over all processes at the end.

    Raises:
        ValueError: clips or labels have a wrong shape or dtype, or are empty.
        FloatingPointError: the loss is not finite; the message names the step.
    """
    _check_clips(clips, labels)
    target = torch.device(device)
    model.to(target)
    with torch.random.fork_rng(devices=[target] if target.type == "cuda" else []):
        torch.manual_seed(seed + 1_000_003 * team.rank)  # dropout; order and augmentation have separate generators
        losses = tuple(_train(model, clips, labels, config, seed, target, team))
    team.average([buffer for buffer in model.buffers() if buffer.is_floating_point()])
    return losses


def batch_order(num_clips: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Yield index batches (batch_size,) int64 without end: consecutive shuffles of all clips, cut into full batches.

    A batch may span two shuffles, so a small label fraction repeats clips more often instead of using smaller batches.
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
    team: WorkerGroup,
) -> list[float]:
    """Run `config.iterations` training steps and return the loss of each."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=config.learning_rate, betas=(config.beta1, 0.999), weight_decay=config.weight_decay
    )
    augmentation = torch.Generator().manual_seed(seed + 1)
    model.train()
    losses: list[float] = []
    batches = batch_order(len(clips), config.batch_size, seed)
    for step, batch in zip(range(1, config.iterations + 1), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(config.schedule, step, config.iterations)
        rows, draws = (
            t.tensor_split(team.size)[team.rank]
            for t in (batch, torch.rand(len(batch), 1 + NUM_DRAWS, generator=augmentation))
        )
        video = prepare_batch(clips[rows].to(device), draws.to(device), config)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            logits = model(video)
        loss = F.cross_entropy(logits.float(), labels[rows].to(device))
        loss = loss * (len(rows) * team.size / len(batch))  # equal weight for every clip if shares differ in size
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        value = loss.detach()
        team.average([value, *(p.grad for p in trained if p.grad is not None)])
        if not value.isfinite():
            raise FloatingPointError(f"fine-tuning loss is {float(value)} at step {step}")
        optimizer.step()
        losses.append(float(value))
    return losses


def prepare_batch(frames: Tensor, draws: Tensor, config: FinetuneConfig) -> Tensor:
    """Augment training clips and convert them to model input.

    Channels stay last in memory: a step then takes 0.75 of the time at base 16 on a CPU. Mirroring is applied to bytes
    rather than floats.

    Args:
        frames: (B, T, H, W, 3) uint8.
        draws: uniform random numbers (B, 1 + NUM_DRAWS) in [0, 1).
        config: augmentation settings.

    Returns:
        (B, 3, T, H, W) float32 in [-1, 1].
    """
    if config.flip:
        frames = horizontal_flip(frames.movedim(-1, 1), draws[:, 0] < 0.5).movedim(1, -1)
    return augment(normalize_clips(frames, torch.channels_last_3d), draws[:, 1:], config.augment)


def schedule(name: str, step: int, steps: int) -> float:
    """Return the factor on the initial learning rate at a step.

    Args:
        name: "constant", or "cosine" for a half cosine that decays toward 0.
        step: 1..`steps`.
        steps: total number of steps.
    """
    return 1.0 if name == "constant" else 0.5 + 0.5 * math.cos(math.pi * (step - 1) / steps)


def _check_clips(clips: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless clips are (N, T, H, W, 3) uint8 and labels (N,) int64, not negative."""
    if clips.ndim != 5 or clips.shape[-1] != 3 or clips.dtype != torch.uint8 or not len(clips):
        raise ValueError(f"clips must be (N, T, H, W, 3) uint8 with N above 0, got {tuple(clips.shape)} {clips.dtype}")
    if labels.shape != clips.shape[:1] or labels.dtype != torch.int64 or int(labels.min()) < 0:
        raise ValueError(f"labels must be ({len(clips)},) int64, at least 0, got {tuple(labels.shape)} {labels.dtype}")
