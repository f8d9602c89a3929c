"""Selection of the frames of a shot for classification, and the scene columns of its clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from vgan.records import Clip, ClipScores, Reject
from vgan.scenes.config import SceneConfig
from vgan.scenes.labels import category_labels, category_probabilities, places365_labels, scene_column
from vgan.scenes.preprocess import scene_view
from vgan.scenes.scoring import add_scene_scores, scene_columns

BEACH, GOLF = places365_labels().index("beach"), places365_labels().index("golf_course")


def clip(number: int, start_s: float, shot: int = 0) -> Clip:
    """Return a clip whose view has the constant value `number`."""
    view = np.full((224, 224, 3), number, np.uint8)
    return Clip(start_s=start_s, shot=shot, frames=np.zeros((1, 1, 1, 3), np.uint8), evidence=ClipScores(), view=view)


class Recorder:
    """Classifier that records its inputs: beach with probability brightness / 100, golf course with the rest."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def __call__(self, views: Sequence[np.ndarray]) -> np.ndarray:
        brightness = [int(view[0, 0, 0]) for view in views]
        self.calls.append(brightness)
        out = np.zeros((len(views), 365), np.float32)
        out[:, BEACH] = np.array(brightness) / 100
        out[:, GOLF] = 1 - out[:, BEACH]
        return out


def test_scored_classifies_a_few_views_per_segment() -> None:
    reject = Reject(start_s=1.0, stage="screen", reason="black")
    first = [clip(n, start_s=n) for n in range(10)]  # one segment of ten seconds
    items = [*first[:2], reject, *first[2:], clip(50, 10.0), clip(90, 11.0, shot=1)]
    classify = Recorder()
    out = list(add_scene_scores(items, classify, SceneConfig(frames_per_group=3, group_duration_s=10.0)))
    assert classify.calls == [[0, 4, 9], [50], [90]]
    assert [i for i in out if isinstance(i, Reject)] == [reject]
    clips = [i for i in out if isinstance(i, Clip)]
    assert [c.start_s for c in clips] == [*range(10), 10.0, 11.0]
    assert all(c.view is None for c in clips)
    assert [c.scenes["scene_beach"] for c in clips] == [pytest.approx(13 / 300, abs=1e-4)] * 10 + [0.5, 0.9]
    assert [c.scenes["scene"] for c in clips[8:]] == ["golf_course", "golf_course", "beach", "beach"]
    assert clips[-1].scenes["scene_score"] == 0.9


def test_scored_without_clips_does_not_classify() -> None:
    classify = Recorder()
    assert list(add_scene_scores([Reject(start_s=None, stage="decode", reason="corrupt")], classify, SceneConfig()))
    assert classify.calls == []


def test_a_category_is_the_sum_of_its_labels() -> None:
    probabilities = np.zeros(365, np.float32)
    for label, p in {"hospital_room": 0.25, "nursery": 0.5, "train_station/platform": 0.125}.items():
        probabilities[places365_labels().index(label)] = p
    assert category_probabilities(probabilities[None], ["baby", "train", "nursery"]).tolist() == [[0.75, 0.125, 0.5]]
    assert scene_columns(probabilities, ["baby", "train_station/platform"]) == {
        "scene": "nursery",
        "scene_score": 0.5,
        "scene_baby": 0.75,
        "scene_train_station_platform": 0.125,
    }
    assert scene_column("train_station/platform") == "scene_train_station_platform"


def test_unknown_category_error_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no scene category 'golf_curse'; did you mean 'golf_course'"):
        category_labels("golf_curse")
    with pytest.raises(ValueError, match="did you mean 'beach'"):
        SceneConfig(categories=["beech"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": []}, "categories"),
        ({"categories": ["beach", "beach"]}, "once"),
        ({"keep_categories": ["golf_course"]}, "scene.keep_categories"),
        ({"min_probability": 1.5}, "min_probability"),
        ({"frames_per_group": 0}, "frames_per_group"),
    ],
)
def test_scene_settings_out_of_bounds_are_rejected(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SceneConfig(), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(128, 170, 3), (1080, 1920, 3)])
def test_scene_view_resizes_to_a_square_and_crops(shape: tuple[int, ...]) -> None:
    picture = np.zeros(shape, np.uint8)
    picture[:, shape[1] // 2 :] = 200
    view = scene_view(picture)
    assert view.shape == (224, 224, 3)
    assert (view[:, :110] == 0).all()
    assert (view[:, 114:] == 200).all()
