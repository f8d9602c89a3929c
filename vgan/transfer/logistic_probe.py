"""Logistic regression on the last features of the trunk (paper figure 4a, "VGAN + Logistic Reg")."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from vgan.transfer.scores import forward_batches


def features(trunk: nn.Module, clips: Tensor, batch_size: int, device: torch.device | str = "cpu") -> np.ndarray:
    """Extract the trunk's last features.

    The trunk is put in eval mode and stays in it: batch norm uses the statistics from training.

    Args:
        trunk: maps (B, 3, T, H, W) float32 in [-1, 1] to feature maps.
        clips: (N, T, H, W, 3) uint8.
        batch_size: clips per forward pass.
        device: device to run on.

    Returns:
        float32 (N, 8 base * T/16 * H/16 * W/16).
    """
    return forward_batches(trunk, clips, batch_size, device).flatten(1).numpy()


def logistic_probabilities(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, num_classes: int, strength: float
) -> np.ndarray:
    """Fit a logistic regression to standardized training features and predict class probabilities.

    Args:
        train: training features (N, D).
        labels: (N,) int64 in 0..K-1, of at least two classes; a class without a clip gets probability 0.
        test: test features (M, D).
        num_classes: K.
        strength: strength of the L2 penalty, the inverse of scikit-learn's C.

    Returns:
        Class probabilities (M, K) float64.
    """
    scaler = StandardScaler().fit(train)
    model = LogisticRegression(C=1 / strength, max_iter=1000).fit(scaler.transform(train), labels)
    result = np.zeros((len(test), num_classes))
    result[:, model.classes_] = model.predict_proba(scaler.transform(test))
    return result
