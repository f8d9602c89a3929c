"""Presets: known settings, allowed values and the intended effect."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from vgan.models.config import ModelConfig
from vgan.presets import PRESETS
from vgan.training.config import ObjectiveConfig


def applied(values: dict[str, Any], **more: Any) -> tuple[ModelConfig, ObjectiveConfig]:
    """Return model and objective settings with a preset's values; unknown keys and values out of bounds raise."""
    groups: dict[str, dict[str, Any]] = {"model": dict(more), "objective": {}}
    for key, value in values.items():
        group, _, name = key.partition(".")
        groups[group][name] = value
    return ModelConfig(**groups["model"]), ObjectiveConfig(**groups["objective"])


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("kind", ["two_stream", "one_stream", "future", "autoencoder"])
def test_preset_is_made_of_allowed_settings_of_every_kind_of_model(name: str, kind: str) -> None:
    for config in applied(PRESETS[name], architecture=kind):
        hints = {field.name: type(getattr(type(config)(), field.name)) for field in dataclasses.fields(config)}
        assert {key: type(getattr(config, key)) for key in hints} == hints


@pytest.mark.parametrize("name", sorted(PRESETS.keys() - {"paper"}))
def test_preset_changes_each_setting_that_it_names(name: str) -> None:
    plain = dict(zip(("model", "objective"), applied({}), strict=True))
    for key, value in PRESETS[name].items():
        group, _, option = key.partition(".")
        assert getattr(plain[group], option) != value


def test_preset_paper_is_the_defaults() -> None:
    assert applied(PRESETS["paper"]) == (ModelConfig(), ObjectiveConfig())


def test_preset_reference_is_the_published_future_model() -> None:
    model, objective = applied(PRESETS["reference"], architecture="future")
    assert model.wide
    assert (objective.first_frame_loss, objective.first_frame_weight) == ("l1", 10.0)


def test_preset_reference_trains_the_two_stream_model_as_the_paper_does() -> None:
    model, objective = applied(PRESETS["reference"])
    assert not model.wide
    assert (objective.loss, objective.mask_weight, objective.mask_target) == ("softmax", 0.1, 0.0)


def test_preset_stable_holds_the_discriminator_back() -> None:
    model, objective = applied(PRESETS["stable"])
    assert (model.discriminator_norm, objective.loss) == ("spectral", "hinge")
