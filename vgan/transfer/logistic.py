"""Logistic regression on the trunk's last features (paper figure 4a, "VGAN + Logistic Reg")."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from vgan.transfer.scores import outputs


def features(trunk: nn.Module, clips: Tensor, batch_size: int, device: torch.device | str = "cpu") -> np.ndarray:
    """What the trunk ends in, float32 (N, 8 base * T/16 * H/16 * W/16), of clips (N, T, H, W, 3) uint8.

    The trunk is left in eval mode: batch norm has the statistics it was trained with.
    """
    return outputs(trunk, clips, batch_size, device).flatten(1).numpy()


def logistic_probabilities(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, num_classes: int, strength: float
) -> np.ndarray:
    """Class probabilities (M, K) of test features (M, D) by a regression fitted to training features (N, D).

    Args:
        labels: (N,) int64 in 0..K-1, two classes or more; one without a clip is never predicted.
        strength: of the L2 penalty: the inverse of scikit-learn's C.
    """
    scaler = StandardScaler().fit(train)
    model = LogisticRegression(C=1 / strength, max_iter=1000).fit(scaler.transform(train), labels)
    found = np.zeros((len(test), num_classes))
    found[:, model.classes_] = model.predict_proba(scaler.transform(test))
    return found
