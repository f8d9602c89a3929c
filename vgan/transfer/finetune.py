"""Fine-tune a clip classifier and score it (paper section 3.3): every layer trained, softmax cross entropy.

Pure torch on tensors in memory; what the model is, and where its weights come from, is the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vgan.config import FinetuneConfig
from vgan.video.pixels import batch_to_model_range


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """Scores on the test clips after the last step. Accuracies are shares in [0, 1]."""

    protocol: str  # what was tested and how, e.g. "ucf101-split1_1clip"
    accuracy: float  # over clips
    class_accuracy: np.ndarray  # (K,) float64, NaN for a class without a test clip
    confusion: np.ndarray  # (K, K) int64, rows the truth, columns the prediction
    losses: tuple[float, ...]  # training loss of every step

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics under names that carry the protocol."""
        return {
            f"accuracy/{self.protocol}": self.accuracy,
            f"accuracy_class_mean/{self.protocol}": float(np.nanmean(self.class_accuracy)),
        }


def protocol_name(dataset: str, split: int, test_clips: int = 1) -> str:
    """The test protocol as metric names spell it: "ucf101-split1_1clip" scores each video's first 32 frames once.

    The paper and its code do not say which clips were tested; one clip is the plainest reading of both.
    """
    return f"{dataset}-split{split}_{test_clips}clip"


def finetune(
    model: nn.Module,
    train_clips: Tensor,
    train_labels: Tensor,
    test_clips: Tensor,
    test_labels: Tensor,
    config: FinetuneConfig,
    *,
    seed: int,
    protocol: str,
    device: torch.device | str = "cpu",
) -> FinetuneResult:
    """Train `model` in place for `config.iterations` steps of Adam, then score it once on the test clips.

    The number of steps is the same for every label fraction. Parameters that require no gradient stay as they are,
    while batch norm statistics still move, as in the authors' logistic regression. The same seed gives the same result
    on the same device; the caller's random state is untouched.

    Args:
        model: maps (B, 3, T, H, W) float32 in [-1, 1] to logits (B, K); dropout is its own.
        train_clips: (N, T, H, W, 3) uint8; `test_clips` too.
        train_labels: (N,) int64 in 0..K-1; `test_labels` too.
        protocol: see `protocol_name`.

    Raises:
        ValueError: clips and labels do not fit each other, or there are none.
        FloatingPointError: the loss is not finite; names the step.
    """
    _check_clips("train", train_clips, train_labels)
    _check_clips("test", test_clips, test_labels)
    target = torch.device(device)
    model.to(target)
    with torch.random.fork_rng(devices=[target] if target.type == "cuda" else []):
        torch.manual_seed(seed)  # for dropout; the order has a generator of its own
        losses = _train(model, train_clips, train_labels, config, seed, target)
    confusion = confusion_matrix(model, test_clips, test_labels, config.batch_size, target)
    per_class = confusion.sum(axis=1)
    correct = np.diag(confusion)
    class_accuracy = np.divide(correct, per_class, out=np.full(len(correct), np.nan), where=per_class > 0)
    return FinetuneResult(
        protocol=protocol,
        accuracy=float(correct.sum() / per_class.sum()),
        class_accuracy=class_accuracy,
        confusion=confusion,
        losses=tuple(losses),
    )


@torch.no_grad()
def confusion_matrix(
    model: nn.Module, clips: Tensor, labels: Tensor, batch_size: int, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Counts (K, K) int64 of truth (rows) against prediction (columns); the model is left in eval mode.

    Args:
        clips: (N, T, H, W, 3) uint8.
        labels: (N,) int64 in 0..K-1.

    Raises:
        ValueError: a label is not in 0..K-1.
    """
    model.eval()
    predicted = [model(batch_to_model_range(batch.to(device))).cpu() for batch in clips.split(batch_size)]
    logits = torch.cat(predicted)  # (N, K)
    num_classes = logits.shape[1]
    if int(labels.max()) >= num_classes:
        raise ValueError(f"labels must be below the model's {num_classes} classes, got {int(labels.max())}")
    cells = labels.cpu() * num_classes + logits.argmax(dim=1)  # (N,)
    return torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes).numpy()


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
) -> list[float]:
    """`config.iterations` steps; the loss of each."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=config.learning_rate, betas=(config.beta1, 0.999))
    model.train()
    losses: list[float] = []
    batches = batch_order(len(clips), config.batch_size, seed)
    for step, batch in zip(range(1, config.iterations + 1), batches, strict=False):
        loss = F.cross_entropy(model(batch_to_model_range(clips[batch].to(device))), labels[batch].to(device))
        value = float(loss.detach())
        if not np.isfinite(value):
            raise FloatingPointError(f"fine-tuning loss is {value} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(value)
    return losses


def _check_clips(side: str, clips: Tensor, labels: Tensor) -> None:
    if clips.ndim != 5 or clips.shape[-1] != 3 or clips.dtype != torch.uint8 or not len(clips):
        raise ValueError(
            f"{side} clips must be (N, T, H, W, 3) uint8 with N above 0, got {tuple(clips.shape)} {clips.dtype}"
        )
    if labels.shape != clips.shape[:1] or labels.dtype != torch.int64 or int(labels.min()) < 0:
        raise ValueError(
            f"{side} labels must be ({len(clips)},) int64 from 0, got {tuple(labels.shape)} {labels.dtype}"
        )
