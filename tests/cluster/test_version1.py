"""A dataset, a run and a checkpoint of settings version 1 are read, continued and exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from version1_files import (
    CONFIG_DIGEST,
    MODEL,
    RUN,
    VIDEO,
    WORK_DIGEST,
    write_checkpoint_v1,
    write_dataset_v1,
    write_model_v1,
    write_run_v1,
)

from cluster.checkpoints.store import open_checkpoint, open_model
from cluster.dataset import manifest as manifest_module
from cluster.dataset.manifest import Manifest, read_manifest, write_manifest
from cluster.runtime.run_registry import register_run
from cluster.training.config import DEFAULTS, PINNED, TrainConfig
from vgan.errors import InputError
from vgan.models import pretrained
from vgan.models.config import ModelConfig
from vgan.models.factory import make_networks
from vgan.renamed_keys import KEYS, SECTIONS, downgrade, upgrade
from vgan.training.config import ObjectiveConfig
from vgan.video.config import ClipSpec, FilterConfig, StabilizeConfig, VideoConfig

NEW_MODEL = ModelConfig(
    base_width=2, discriminator_norm="spectral", num_frames=16, size=32, upsample="resize", z_size=5
)
NEW_OBJECTIVE = ObjectiveConfig(
    background_weight=10.0, horizontal_flip=True, loss="hinge", mask_target=0.2, mask_weight=1.0
)


# The default settings of version 1; those added later keep their present defaults.
VIDEO_V1 = VideoConfig(
    clip=ClipSpec(stride=16),
    stabilize=StabilizeConfig(preset="paper"),
    filters=FilterConfig(max_filled_fraction=0.5, max_zoom=2.0, min_inlier_ratio=0.6),
)


def test_digests_are_computed_over_the_names_of_version_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "VIDEO_REVISION", 2)  # that of the fixture: the revision enters the digests
    settings = upgrade(VIDEO)
    assert manifest_module._digest(settings) == CONFIG_DIGEST
    del settings["filters"]
    for limit in ("timeout_s", "timeout_per_video_second", "memory_gb"):
        del settings["decode"][limit]
    assert manifest_module._digest(settings) == WORK_DIGEST


def test_upgrade_takes_every_old_key_and_leaves_present_ones() -> None:
    new = upgrade(VIDEO)
    present = asdict(VIDEO_V1)
    assert {section: {key: present[section][key] for key in keys} for section, keys in new.items()} == new
    assert upgrade(new) == new
    assert downgrade(new) == VIDEO
    assert downgrade(upgrade(RUN)) == RUN
    assert len(set(KEYS.values())) == len(KEYS)
    assert not set(SECTIONS) & {f"{key}" for key in asdict(VideoConfig())}


def test_dataset_is_read_and_keeps_its_digest(write_dataset: Callable[..., Manifest], tmp_path: Path) -> None:
    digest = write_dataset_v1(str(tmp_path), write_dataset)
    manifest = read_manifest(str(tmp_path))
    assert (manifest.settings_version, manifest.digest, manifest.content_digest()) == (1, digest, digest)
    assert manifest.video == replace(VIDEO_V1, clip=ClipSpec(num_frames=16, size=32, stride=16))
    write_manifest(manifest, str(tmp_path))
    assert read_manifest(str(tmp_path)) == manifest


def test_run_continues_and_other_settings_are_named_as_they_are_called_now(tmp_path: Path) -> None:
    key = write_run_v1(str(tmp_path), "d" * 64)
    config = TrainConfig(data="x", batch_size=4, model=NEW_MODEL, objective=NEW_OBJECTIVE)
    settings = {k: v for k, v in asdict(config).items() if k in PINNED} | {"data": "d" * 64}
    assert register_run(str(tmp_path), "gan", settings, DEFAULTS) == key
    with pytest.raises(InputError, match=r"max_grad_norm was 0\.0, now 1\.0"):
        register_run(str(tmp_path), "gan", settings | {"max_grad_norm": 1.0}, DEFAULTS)


def test_checkpoint_and_exported_model_are_read_and_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    networks = make_networks(NEW_MODEL)
    write_checkpoint_v1(tmp_path / "step_00000003_a", networks, "/data", "d" * 64)
    checkpoint = open_checkpoint(str(tmp_path / "step_00000003_a"))
    assert (checkpoint.step, checkpoint.model) == (3, NEW_MODEL)
    model, _ = open_model(str(tmp_path / "step_00000003_a"), ema=False)
    pretrained.save(tmp_path / "exported", NEW_MODEL, {"generator": model.generator})
    assert json.loads((tmp_path / "exported" / "model.json").read_text())["model"] == asdict(NEW_MODEL)
    write_model_v1(tmp_path / "exported")
    assert "kind" in MODEL
    again = pretrained.load(tmp_path / "exported")
    assert (again.sample(1, seed=0).video == model.sample(1, seed=0).video).all()
