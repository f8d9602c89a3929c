"""Video scores from clip probabilities in hand-made cases, and coverage of the intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from vgan.transfer.scores import Scores, interval, probabilities, protocol_name, resampled_means, score_videos

PROBABILITIES = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.0, 0.4, 0.6], [0.3, 0.3, 0.4], [0.6, 0.0, 0.4]])


def test_score_takes_the_mean_over_a_videos_clips() -> None:
    scores = score_videos(PROBABILITIES, np.array([0, 1, 1, 2, 2]), np.array([0, 1, 2]), "x")
    assert scores.predicted.tolist() == [0, 1, 0]  # mean probability 0.45 beats 0.4 in the last video
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.confusion.tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    np.testing.assert_allclose(scores.class_accuracy, [1, 1, 0])
    assert scores.metrics == {"accuracy/x": pytest.approx(2 / 3), "accuracy_class_mean/x": pytest.approx(2 / 3)}


def test_score_class_without_a_video_has_no_accuracy() -> None:
    scores = score_videos(PROBABILITIES[:2], np.array([0, 1]), np.array([0, 0]), "x")
    assert scores.accuracy == 0.5
    assert np.isnan(scores.class_accuracy[1:]).all()
    assert scores.metrics["accuracy_class_mean/x"] == 0.5


@pytest.mark.parametrize(
    ("videos", "labels", "message"),
    [([0, 0, 0, 0, 0], [0, 1], "2 labels"), ([0, 1, 1, 2, 2], [0, 1, 3], r"labels must be in 0\.\.2")],
)
def test_score_rejects_inconsistent_inputs(videos: list[int], labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_videos(PROBABILITIES, np.array(videos), np.array(labels), "x")


def test_probabilities_do_not_depend_on_batch_size_or_dropout() -> None:
    clips = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (10, 4, 8, 8, 3), np.uint8))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout3d(0.9), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(3, 4)).train()
    batched, full = (probabilities(model, clips, size) for size in (3, 10))
    np.testing.assert_allclose(batched, full, rtol=1e-5)
    np.testing.assert_allclose(batched.sum(axis=1), 1, rtol=1e-5)


def test_interval_of_one_seed_is_the_binomials() -> None:
    correct = np.arange(400) < 300
    low, high = interval(resampled_means(correct[None], draws=20_000))
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.004)
    assert (resampled_means(correct[None]) == resampled_means(correct[None])).all()


def test_interval_is_wider_where_seeds_disagree() -> None:
    rng = np.random.default_rng(0)
    alike = np.repeat(rng.random((1, 200)) < 0.6, 5, axis=0)
    differing = rng.random((5, 200)) < np.linspace(0.4, 0.8, 5)[:, None]
    assert np.ptp(interval(resampled_means(differing))) > 1.5 * np.ptp(interval(resampled_means(alike)))


def test_interval_has_nominal_coverage() -> None:
    rng, covered, trials = np.random.default_rng(1), 0, 200
    for _ in range(trials):
        hard = rng.normal(size=(1, 80)) + rng.normal(0, 0.2, size=(6, 1))  # effects of videos and of seeds
        low, high = interval(resampled_means(hard + rng.normal(size=(6, 80)) > 0, draws=400))
        covered += low <= 0.5 <= high
    assert 0.9 <= covered / trials <= 1.0


def test_metric_names_include_the_protocol() -> None:
    assert protocol_name("ucf101", 1) == "ucf101-split1_1clip"
    assert protocol_name("ucf101", 2, test_clips=10) == "ucf101-split2_10clip"
    assert protocol_name("ucf101", 1, fold=2) == "ucf101-split1-heldout2_1clip"
    scores = Scores(protocol="p", labels=np.array([0]), predicted=np.array([1]), num_classes=2)
    assert set(scores.metrics) == {"accuracy/p", "accuracy_class_mean/p"}
