"""Accuracy of a classifier on test videos, under a named test protocol."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vgan.bootstrap import draw_counts, percentile_interval
from vgan.video.normalize import normalize_clips

LEVEL = 95.0  # confidence level of intervals, percent


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Predictions of a classifier on test videos. Accuracies are in [0, 1]."""

    protocol: str  # name of the test protocol, e.g. "ucf101-split1_1clip"
    labels: np.ndarray  # (V,) int64, true class
    predicted: np.ndarray  # (V,) int64, predicted class
    num_classes: int

    @property
    def accuracy(self) -> float:
        """Share of videos classified correctly."""
        return float((self.labels == self.predicted).mean())

    @property
    def confusion(self) -> np.ndarray:
        """Confusion matrix (K, K) int64 of counts: rows are true classes, columns predicted ones."""
        cells = self.labels * self.num_classes + self.predicted
        return np.bincount(cells, minlength=self.num_classes**2).reshape(self.num_classes, self.num_classes)

    @property
    def class_accuracy(self) -> np.ndarray:
        """Accuracy of each class (K,) float64, NaN for a class without a test video."""
        confusion = self.confusion
        per_class = confusion.sum(axis=1)
        return np.divide(np.diag(confusion), per_class, out=np.full(len(per_class), np.nan), where=per_class > 0)

    @property
    def metrics(self) -> dict[str, float]:
        """Accuracy and mean class accuracy under metric names that include the protocol."""
        return {
            f"accuracy/{self.protocol}": self.accuracy,
            f"accuracy_class_mean/{self.protocol}": float(np.nanmean(self.class_accuracy)),
        }


def protocol_name(dataset: str, split: int, *, test_clips: int = 1, fold: int | None = None) -> str:
    """Return the name of a test protocol, as used in metric names.

    "ucf101-split1_1clip" scores the first 32 frames of each test video: the paper and its code do not state which clips
    were tested, and this is the simplest interpretation of both. "10clip" averages the probabilities of ten clips
    spread evenly over the video. "heldout0" tests on groups held out from the training list, in fold 0, for choosing
    settings without using the test list.

    Args:
        dataset: e.g. "ucf101".
        split: number of the train/test split.
        test_clips: clips per test video.
        fold: fold of the groups held out from the training list; None tests on the test list.
    """
    held_out = "" if fold is None else f"-heldout{fold}"
    return f"{dataset}-split{split}{held_out}_{test_clips}clip"


@torch.no_grad()
def forward_batches(model: nn.Module, clips: Tensor, batch_size: int, device: torch.device | str = "cpu") -> Tensor:
    """Return a network's outputs, float32 (N, ...), for clips (N, T, H, W, 3) uint8; the network stays in eval mode."""
    model.to(device).eval()
    return torch.cat(
        [
            model(normalize_clips(batch.to(device), torch.channels_last_3d)).float().cpu()
            for batch in clips.split(batch_size)
        ]
    )


def probabilities(model: nn.Module, clips: Tensor, batch_size: int, device: torch.device | str = "cpu") -> np.ndarray:
    """Return class probabilities (N, K) float32 of clips (N, T, H, W, 3) uint8; the model stays in eval mode."""
    return forward_batches(model, clips, batch_size, device).softmax(dim=1).numpy()


def score_videos(found: np.ndarray, videos: np.ndarray, labels: np.ndarray, protocol: str) -> Scores:
    """Predict the class of each video from the mean of its clips' probabilities.

    Args:
        found: (N, K) class probabilities of clips.
        videos: (N,) int64, index in 0..V-1 of each clip's video; every video occurs at least once.
        labels: (V,) int64, true class of each video.
        protocol: name from `protocol_name`.

    Raises:
        ValueError: a video has no clip, or a label is not in 0..K-1.
    """
    num_classes = found.shape[1]
    if len(np.unique(videos)) != len(labels) or videos.max() >= len(labels):
        raise ValueError(
            f"got {len(labels)} labels for clips of {len(np.unique(videos))} videos: expected one label per video"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must be in 0..{num_classes - 1}, got {labels.min()} to {labels.max()}")
    sums = np.zeros((len(labels), num_classes))
    np.add.at(sums, videos, found)
    means = sums / np.bincount(videos, minlength=len(labels))[:, None]
    return Scores(protocol=protocol, labels=labels, predicted=means.argmax(axis=1), num_classes=num_classes)


def resampled_means(correct: np.ndarray, *, seed: int = 0, draws: int = 2000) -> np.ndarray:
    """Return bootstrap samples of the mean accuracy, with training seeds and test videos drawn with replacement.

    The bootstrap (https://doi.org/10.1214/aos/1176344552) over two crossed factors (https://arxiv.org/abs/1106.2125).
    With one training seed it covers the variation of videos only. Calls with the same `seed` and shape draw the same
    training seeds and videos, so that two initializations can be compared draw by draw.

    Args:
        correct: (S, V) bool, true where the run of a training seed classified a test video correctly.
        seed: seed of the bootstrap.
        draws: number of bootstrap samples.

    Returns:
        Mean accuracies (draws,) float64.
    """
    rng, (seeds, videos) = np.random.default_rng(seed), correct.shape
    by_seed = draw_counts(seeds, draws, rng) / seeds  # (draws, S) weights
    by_video = draw_counts(videos, draws, rng) / videos
    return np.einsum("ds,sv,dv->d", by_seed, correct.astype(float), by_video, optimize=True)


def interval(means: np.ndarray) -> tuple[float, float]:
    """Return the percentile interval (low, high) at `LEVEL` of resampled means."""
    return percentile_interval(means, (100 - LEVEL) / 200)
