"""Scores of videos from probabilities of clips, by hand-made cases, and intervals that hold what they claim."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from vgan.transfer.scores import Scores, interval, probabilities, protocol_name, resampled_means, score

PROBABILITIES = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.0, 0.4, 0.6], [0.3, 0.3, 0.4], [0.6, 0.0, 0.4]])


def test_score_takes_the_mean_over_a_videos_clips() -> None:
    found = score(PROBABILITIES, np.array([0, 1, 1, 2, 2]), np.array([0, 1, 2]), "x")
    assert found.predicted.tolist() == [0, 1, 0]  # 0.45 beats 0.4, where most clips say otherwise
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.confusion.tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    np.testing.assert_allclose(found.class_accuracy, [1, 1, 0])
    assert found.metrics == {"accuracy/x": pytest.approx(2 / 3), "accuracy_class_mean/x": pytest.approx(2 / 3)}


def test_score_class_without_a_video_has_no_accuracy() -> None:
    found = score(PROBABILITIES[:2], np.array([0, 1]), np.array([0, 0]), "x")
    assert found.accuracy == 0.5
    assert np.isnan(found.class_accuracy[1:]).all()
    assert found.metrics["accuracy_class_mean/x"] == 0.5


@pytest.mark.parametrize(
    ("videos", "labels", "message"),
    [([0, 0, 0, 0, 0], [0, 1], "2 labels"), ([0, 1, 1, 2, 2], [0, 1, 3], r"labels must be in 0\.\.2")],
)
def test_score_refuses_what_does_not_fit(videos: list[int], labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(PROBABILITIES, np.array(videos), np.array(labels), "x")


def test_probabilities_do_not_depend_on_batch_size_or_dropout() -> None:
    clips = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (10, 4, 8, 8, 3), np.uint8))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout3d(0.9), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(3, 4)).train()
    several, whole = (probabilities(model, clips, size) for size in (3, 10))
    np.testing.assert_allclose(several, whole, rtol=1e-5)
    np.testing.assert_allclose(several.sum(axis=1), 1, rtol=1e-5)


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


def test_interval_holds_the_true_accuracy_about_as_often_as_it_says() -> None:
    rng, held, trials = np.random.default_rng(1), 0, 200
    for _ in range(trials):
        hard = rng.normal(size=(1, 80)) + rng.normal(0, 0.2, size=(6, 1))  # videos and seeds of their own
        low, high = interval(resampled_means(hard + rng.normal(size=(6, 80)) > 0, draws=400))
        held += low <= 0.5 <= high
    assert 0.9 <= held / trials <= 1.0


def test_scores_are_of_a_named_protocol() -> None:
    assert protocol_name("ucf101", 1) == "ucf101-split1_1clip"
    assert protocol_name("ucf101", 2, test_clips=10) == "ucf101-split2_10clip"
    assert protocol_name("ucf101", 1, fold=2) == "ucf101-split1-heldout2_1clip"
    found = Scores(protocol="p", labels=np.array([0]), predicted=np.array([1]), num_classes=2)
    assert set(found.metrics) == {"accuracy/p", "accuracy_class_mean/p"}
