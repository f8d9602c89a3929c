"""Logistic regression on features learned without labels."""

from __future__ import annotations

import numpy as np
import torch

from vgan.models.classifier import Classifier
from vgan.models.config import ModelConfig
from vgan.transfer.logistic_probe import features, logistic_probabilities


def test_features_are_the_trunks_last_maps_and_do_not_depend_on_the_batch() -> None:
    config = ModelConfig(base_width=2, num_frames=16, size=32)
    trunk = Classifier(config, 3, 0.5).trunk
    clips = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 16, 32, 32, 3), np.uint8))
    batched, full = (features(trunk, clips, size) for size in (2, 5))
    assert full.shape == (5, 8 * 2 * 1 * 2 * 2)
    assert full.dtype == np.float32
    np.testing.assert_allclose(batched, full, rtol=1e-4, atol=1e-6)


def test_logistic_regression_learns_and_stronger_penalty_lowers_confidence() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    train, test = (rng.normal(size=(60, 20)) * 5 + 40 + 20 * np.eye(3, 20)[labels] for _ in range(2))
    predicted = logistic_probabilities(train, labels, test, 4, strength=1.0)
    assert predicted.shape == (60, 4)
    assert not predicted[:, 3].any()  # a class without a clip
    np.testing.assert_allclose(predicted.sum(axis=1), 1)
    assert (predicted.argmax(axis=1) == labels).mean() > 0.8
    regularized = logistic_probabilities(train, labels, test, 4, strength=1000.0)
    assert regularized.max(axis=1).mean() < predicted.max(axis=1).mean()
