"""Score a classifier on test videos, under a protocol that every figure names."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vgan.video.pixels import batch_to_model_range

LEVEL = 95.0  # percent, of intervals


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a classifier said of each test video. Accuracies are shares in [0, 1]."""

    protocol: str  # what was tested and how, e.g. "ucf101-split1_1clip"
    labels: np.ndarray  # (V,) int64, the truth
    predicted: np.ndarray  # (V,) int64
    num_classes: int

    @property
    def accuracy(self) -> float:
        """Over videos."""
        return float((self.labels == self.predicted).mean())

    @property
    def confusion(self) -> np.ndarray:
        """Counts (K, K) int64: rows the truth, columns the prediction."""
        cells = self.labels * self.num_classes + self.predicted
        return np.bincount(cells, minlength=self.num_classes**2).reshape(self.num_classes, self.num_classes)

    @property
    def class_accuracy(self) -> np.ndarray:
        """(K,) float64, NaN for a class without a test video."""
        confusion = self.confusion
        per_class = confusion.sum(axis=1)
        return np.divide(np.diag(confusion), per_class, out=np.full(len(per_class), np.nan), where=per_class > 0)

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics under names that carry the protocol."""
        return {
            f"accuracy/{self.protocol}": self.accuracy,
            f"accuracy_class_mean/{self.protocol}": float(np.nanmean(self.class_accuracy)),
        }


def protocol_name(dataset: str, split: int, *, test_clips: int = 1, fold: int | None = None) -> str:
    """The test protocol as metric names spell it.

    "ucf101-split1_1clip" looks at each test video's first 32 frames once: the paper and its code do not say which clips
    were tested, and this is the plainest reading of both. "10clip" takes the mean of the probabilities of ten clips
    that are spread evenly over the video. "heldout0" tests on groups held out from the training list, of fold 0, for
    choosing settings without a look at the test list.
    """
    held_out = "" if fold is None else f"-heldout{fold}"
    return f"{dataset}-split{split}{held_out}_{test_clips}clip"


@torch.no_grad()
def outputs(model: nn.Module, clips: Tensor, batch_size: int, device: torch.device | str = "cpu") -> Tensor:
    """What a network gives for clips (N, T, H, W, 3) uint8, float32 (N, ...); it is left in eval mode."""
    model.to(device).eval()
    return torch.cat(
        [
            model(batch_to_model_range(batch.to(device), torch.channels_last_3d)).float().cpu()
            for batch in clips.split(batch_size)
        ]
    )


def probabilities(model: nn.Module, clips: Tensor, batch_size: int, device: torch.device | str = "cpu") -> np.ndarray:
    """Class probabilities (N, K) float32 of clips (N, T, H, W, 3) uint8; the model is left in eval mode."""
    return outputs(model, clips, batch_size, device).softmax(dim=1).numpy()


def score(found: np.ndarray, videos: np.ndarray, labels: np.ndarray, protocol: str) -> Scores:
    """Judge videos by the mean of their clips' probabilities.

    Args:
        found: (N, K) probabilities of clips.
        videos: (N,) int64, the video of each clip, 0..V-1, each at least once.
        labels: (V,) int64, the class of each video.
        protocol: see `protocol_name`.

    Raises:
        ValueError: a video without a clip, or a label that is not in 0..K-1.
    """
    num_classes = found.shape[1]
    if len(np.unique(videos)) != len(labels) or videos.max() >= len(labels):
        raise ValueError(f"{len(labels)} labels for clips of {len(np.unique(videos))} videos")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must be below the model's {num_classes} classes, got {labels.max()}")
    sums = np.zeros((len(labels), num_classes))
    np.add.at(sums, videos, found)
    means = sums / np.bincount(videos, minlength=len(labels))[:, None]
    return Scores(protocol=protocol, labels=labels, predicted=means.argmax(axis=1), num_classes=num_classes)


def resampled_means(correct: np.ndarray, *, seed: int = 0, draws: int = 2000) -> np.ndarray:
    """Mean accuracies (draws,) had seeds and test videos been others: both are drawn with replacement.

    The bootstrap (https://doi.org/10.1214/aos/1176344552) over two factors at once (https://arxiv.org/abs/1106.2125).
    With one seed it tells of the videos alone. The same `seed` and shape draw the same seeds and videos, so that two
    inits can be compared draw by draw.

    Args:
        correct: (S, V) bool, whether each seed's run was right on each test video.
    """
    rng, (seeds, videos) = np.random.default_rng(seed), correct.shape
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds  # (draws, S) weights
    by_video = rng.multinomial(videos, np.full(videos, 1 / videos), draws) / videos
    return np.einsum("ds,sv,dv->d", by_seed, correct.astype(float), by_video, optimize=True)


def interval(means: np.ndarray) -> tuple[float, float]:
    """Lowest and highest of the middle 95 % of resampled means."""
    low, high = np.percentile(means, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)
