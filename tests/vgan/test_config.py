"""Settings: bounds are checked, errors name option and value, and every option has a help text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, get_type_hints

import pytest

from vgan.models.config import ModelConfig
from vgan.options import option
from vgan.training.config import ObjectiveConfig
from vgan.transfer.config import FinetuneConfig
from vgan.video.config import ClipSpec, DecodeConfig, FilterConfig, ShotConfig, StabilizeConfig, VideoConfig

CONFIG_CLASSES = (VideoConfig, ModelConfig, ObjectiveConfig, FinetuneConfig)


@pytest.mark.parametrize(
    ("config_class", "key", "value"),
    [
        (ClipSpec, "num_frames", 0),
        (ClipSpec, "num_frames", 24),
        (ClipSpec, "size", 48),
        (ClipSpec, "fps", 0.0),
        (ClipSpec, "fps", float("nan")),
        (ClipSpec, "stride", 0),
        (ClipSpec, "max_per_video", 0),
        (DecodeConfig, "backend", "ffmpeg"),
        (DecodeConfig, "short_side", 16),
        (DecodeConfig, "timeout_s", 0.0),
        (DecodeConfig, "memory_gb", -1.0),
        (ShotConfig, "history_frames", 1),
        (StabilizeConfig, "preset", "fast"),
        (StabilizeConfig, "min_matches", 2),
        (StabilizeConfig, "sift_size", 16),
        (DecodeConfig, "segment_s", 0.0),
        (FilterConfig, "max_clips_per_video", 0),
        (ModelConfig, "architecture", "one"),
        (ModelConfig, "base_width", 0),
        (ModelConfig, "num_frames", 40),
        (ModelConfig, "size", 256),
        (ModelConfig, "z_size", 0),
        (ModelConfig, "future_encoder", "wide"),
        (ModelConfig, "upsample", "bilinear"),
        (ModelConfig, "discriminator_norm", "layer"),
        (ObjectiveConfig, "loss", "wasserstein"),
        (ObjectiveConfig, "first_frame_loss", "l0"),
        (ObjectiveConfig, "augment", ["color", "rotation"]),
        (ObjectiveConfig, "learning_rate", 0.0),
        (ObjectiveConfig, "learning_rate", float("nan")),
        (ObjectiveConfig, "discriminator_lr_ratio", -1.0),
        (ObjectiveConfig, "mask_weight", -0.1),
        (ObjectiveConfig, "mask_weight", float("nan")),
        (ObjectiveConfig, "first_frame_weight", -1.0),
        (ObjectiveConfig, "r1_weight", -1.0),
        (ObjectiveConfig, "nearest_match_weight", -1.0),
        (ObjectiveConfig, "mask_target", 1.5),
        (ObjectiveConfig, "mask_target", -0.1),
        (ObjectiveConfig, "beta1", 1.0),
        (ObjectiveConfig, "beta2", -0.1),
        (FinetuneConfig, "iterations", 0),
        (FinetuneConfig, "batch_size", 1),
        (FinetuneConfig, "dropout", 1.0),
    ],
)
def test_settings_out_of_bounds_are_rejected_by_name_and_value(config_class: Any, key: str, value: Any) -> None:
    item = value[-1] if isinstance(value, list) else value
    with pytest.raises(ValueError, match=rf"\.{key}\b.*{re.escape(str(item))}"):
        config_class(**{key: value})


def test_settings_replaced_are_checked_again() -> None:
    assert dataclasses.replace(ClipSpec(), size=32).size == 32
    with pytest.raises(ValueError, match="33"):
        dataclasses.replace(ClipSpec(), size=33)


def test_settings_do_not_change_after_they_are_made() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ClipSpec().size = 32  # type: ignore[misc]


def test_defaults_are_the_papers() -> None:
    video, model, objective = VideoConfig(), ModelConfig(), ObjectiveConfig()
    assert (video.clip.num_frames, video.clip.size, video.clip.fps) == (32, 64, 25.0)
    assert (model.base_width, model.z_size, model.num_frames, model.size) == (64, 100, 32, 64)
    assert (model.architecture, model.future_encoder, model.upsample) == ("two_stream", "paper", "transpose")
    assert model.discriminator_norm == "batch"
    assert (objective.learning_rate, objective.beta1, objective.beta2, objective.mask_weight) == (2e-4, 0.5, 0.999, 0.1)
    assert (objective.loss, objective.first_frame_loss, objective.first_frame_weight) == ("softmax", "l2", 10.0)
    # options that are not in the paper are disabled
    assert (objective.r1_weight, objective.augment, objective.horizontal_flip, objective.mask_target) == (
        0.0,
        [],
        False,
        0.0,
    )
    assert objective.discriminator_lr_ratio == 1.0
    assert FinetuneConfig().dropout == 0.5


@pytest.mark.parametrize(
    ("num_frames", "size", "shape"), [(32, 64, (2, 4, 4)), (16, 32, (1, 2, 2)), (48, 128, (3, 8, 8))]
)
def test_code_shape_is_four_halvings_below_the_clip(num_frames: int, size: int, shape: tuple[int, int, int]) -> None:
    assert ModelConfig(num_frames=num_frames, size=size).code_shape == shape


@pytest.mark.parametrize("kind", ["two_stream", "one_stream", "future", "autoencoder"])
def test_widths_double_for_the_published_future_model_alone(kind: str) -> None:
    assert ModelConfig(architecture=kind, future_encoder="reference").wide == (kind == "future")
    assert not ModelConfig(architecture=kind, future_encoder="paper").wide


@pytest.mark.parametrize("config_class", CONFIG_CLASSES)
def test_every_option_has_a_help_text(config_class: type) -> None:
    def fields(config_class: type) -> Iterator[tuple[type, dataclasses.Field[Any]]]:
        hints = get_type_hints(config_class)
        for field in dataclasses.fields(config_class):
            yield config_class, field
            if dataclasses.is_dataclass(hints[field.name]):
                yield from fields(hints[field.name])

    undocumented = [
        f"{owner.__name__}.{f.name}" for owner, f in fields(config_class) if len(f.metadata.get("help", "")) < 8
    ]
    assert not undocumented


def test_option_creates_a_list_per_instance() -> None:
    @dataclasses.dataclass(frozen=True)
    class Sizes:
        values: list[int] = option([1, 2], "some sizes")

    first, second = Sizes(), Sizes()
    first.values.append(3)
    assert second.values == [1, 2]
