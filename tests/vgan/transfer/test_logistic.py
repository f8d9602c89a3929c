"""The regression on features that no label has shaped."""

from __future__ import annotations

import numpy as np
import torch

from vgan.config import ModelConfig
from vgan.models.classifier import Classifier
from vgan.transfer.logistic import features, logistic_probabilities


def test_features_are_the_trunks_last_maps_and_do_not_depend_on_the_batch() -> None:
    config = ModelConfig(base=2, num_frames=16, size=32)
    trunk = Classifier(config, 3, 0.5).trunk
    clips = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 16, 32, 32, 3), np.uint8))
    several, whole = (features(trunk, clips, size) for size in (2, 5))
    assert whole.shape == (5, 8 * 2 * 1 * 2 * 2)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(several, whole, rtol=1e-4, atol=1e-6)


def test_logistic_regression_learns_and_a_stronger_penalty_is_less_sure() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    train, test = (rng.normal(size=(60, 20)) * 5 + 40 + 20 * np.eye(3, 20)[labels] for _ in range(2))
    found = logistic_probabilities(train, labels, test, 4, strength=1.0)
    assert found.shape == (60, 4)
    assert not found[:, 3].any()  # a class without a clip
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert (found.argmax(axis=1) == labels).mean() > 0.8
    weak = logistic_probabilities(train, labels, test, 4, strength=1000.0)
    assert weak.max(axis=1).mean() < found.max(axis=1).mean()
