"""A sweep's bookkeeping on the driver: registration, reading of the official lists, drawing of figures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from cluster.storage.files import write_json
from cluster.transfer import sweep as sweep_module
from cluster.transfer.config import SweepConfig
from cluster.transfer.sweep_run import Initialization
from vgan.errors import InputError
from vgan.models.config import ModelConfig

RANDOM = {"random": Initialization(ModelConfig())}


def config(out: Path, **settings: object) -> SweepConfig:
    return SweepConfig(ucf101="unused", out=str(out), initializations=["random"], **settings)  # type: ignore[arg-type]


def test_restarted_sweep_has_the_same_key_and_other_test_settings_are_refused(tmp_path: Path) -> None:
    key = sweep_module._register(config(tmp_path), "d", RANDOM)
    assert sweep_module._register(config(tmp_path, fractions=[1.0], seeds=[5]), "d", RANDOM) == key
    with pytest.raises(InputError, match="validation was False, now True"):
        sweep_module._register(config(tmp_path, validation=True), "d", RANDOM)


def test_sweep_registered_with_the_keys_of_settings_version_1_continues(tmp_path: Path) -> None:
    settings = {"finetune": asdict(config(tmp_path).finetune), "data": "d", "test_clips": 1, "choose": False, "fold": 0}
    settings["finetune"]["logistic_penalty"] = settings["finetune"].pop("l2_penalty")
    write_json(f"{tmp_path}/sweep/run.json", {"key": "sweep-old", "settings": settings})
    assert sweep_module._register(config(tmp_path), "d", RANDOM) == "sweep-old"
