"""Checkpoints are read back exactly, or refused in one line that names the tensor or the folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import vgan
from cluster import storage
from cluster.checkpoints import Checkpoint, latest, load_weights, open_checkpoint, open_model, write_state
from vgan.config import ModelConfig
from vgan.errors import BadInput
from vgan.models.classifier import Classifier
from vgan.models.discriminator import Discriminator
from vgan.models.generator import TwoStreamGenerator

MODEL = ModelConfig(base=2, z_size=5, num_frames=16, size=32)
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a checkpoint of freshly drawn networks into runs/gan/step_<step>."""

    def write(step: int = 7, model: ModelConfig = MODEL, **networks: nn.Module) -> Path:
        folder = tmp_path / "runs" / "gan" / f"step_{step:08d}"
        lineage = {"dataset_url": "/clips", "dataset_digest": "d" * 64, "mlflow_run_id": "r" * 32}
        state = {"step": step, "clips_seen": 8 * step, "model": asdict(model), "config": {}, **lineage}
        networks = networks or {"generator": TwoStreamGenerator(model), "discriminator": Discriminator(model)}
        write_state(folder, state, networks)
        return folder

    return write


def snapshot(run: Path, newest: str | None) -> None:
    """Ray Train's list of checkpoints, as far as we read it."""
    value = {"latest_checkpoint_result": {"checkpoint_dir_name": newest} if newest else None}
    storage.write_json(str(run / "checkpoint_manager_snapshot.json"), value)


def test_weights_come_back_bit_for_bit_with_their_buffers(write: Write) -> None:
    torch.manual_seed(1)
    G = TwoStreamGenerator(MODEL)
    G(torch.randn(4, 5))  # moves the batch-norm statistics
    found = open_checkpoint(str(write(generator=G)))
    other = TwoStreamGenerator(MODEL)
    load_weights(found, "generator", other)
    assert all(torch.equal(v, G.state_dict()[k]) for k, v in other.state_dict().items())
    assert found == Checkpoint(
        url=found.url, step=7, clips_seen=56, model=MODEL, dataset_url="/clips", dataset_digest="d" * 64,
        mlflow_run_id="r" * 32,
    )  # fmt: skip


def test_load_weights_with_a_prefix_fills_a_classifiers_trunk_alone(write: Write) -> None:
    D = Discriminator(MODEL)
    network = Classifier(MODEL, 3, 0.5)
    head = network.head.weight.clone()
    load_weights(open_checkpoint(str(write(discriminator=D))), "discriminator", network.trunk, prefix="trunk.")
    assert all(torch.equal(v, D.trunk.state_dict()[k]) for k, v in network.trunk.state_dict().items())
    assert torch.equal(network.head.weight, head)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": 4}, r"background\.0\.0\.bias is 16 in the file, 32 here"),
        ({"z_size": 6}, r"background\.0\.0\.weight is 5x16x2x2 in the file, 6x16x2x2 here"),
        ({"num_frames": 32}, r"stem\.0\.weight is 5x16x1x2x2 in the file, 5x16x2x2x2 here"),
    ],
)
def test_load_weights_of_another_shape_names_tensor_and_shapes(
    write: Write, change: dict[str, int], message: str
) -> None:
    network = TwoStreamGenerator(replace(MODEL, **change))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(BadInput, match=message) as caught:
        load_weights(open_checkpoint(str(write())), "generator", network)
    assert "generator.safetensors" in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_load_weights_of_another_network_names_the_tensor_that_is_missing(write: Write) -> None:
    with pytest.raises(BadInput, match=r"(head|background)\S+ is missing in the file|missing here"):
        load_weights(open_checkpoint(str(write())), "generator", Discriminator(MODEL))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x80\x04 a pickle", b"\xff" * 64])
def test_load_weights_from_what_is_no_safetensors_file_is_bad_input(write: Write, content: bytes) -> None:
    folder = write()
    (folder / "weights" / "generator.safetensors").write_bytes(content)
    with pytest.raises(BadInput, match=r"cannot read weights from .*generator\.safetensors"):
        load_weights(open_checkpoint(str(folder)), "generator", TwoStreamGenerator(MODEL))


def test_load_weights_that_are_missing_is_bad_input(write: Write) -> None:
    with pytest.raises(BadInput, match=r"generator_ema\.safetensors"):
        load_weights(open_checkpoint(str(write())), "generator_ema", TwoStreamGenerator(MODEL))


def test_open_checkpoint_of_a_run_takes_its_newest(write: Write) -> None:
    older, newer = write(step=3), write(step=12)
    run = older.parent
    snapshot(run, newer.name)
    assert open_checkpoint(str(run)).step == 12
    assert open_checkpoint(f"{run}/").url == str(newer)
    assert open_checkpoint(str(older)).step == 3
    assert latest(str(run)) == str(newer)


def test_open_checkpoint_where_there_is_none_says_what_to_give(tmp_path: Path, write: Write) -> None:
    unfinished = write().parent  # a folder that Ray Train never listed: its writing was cut off
    snapshot(tmp_path / "started", None)
    for url in (tmp_path / "nowhere", tmp_path / "started", unfinished):
        with pytest.raises(BadInput, match=f"no checkpoint at '{url}': give a run's folder"):
            open_checkpoint(str(url))


def to_memory(folder: Path, url: str) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            storage.write_bytes(f"{url}/{path.relative_to(folder)}", path.read_bytes())
    return url


def test_checkpoints_live_on_any_file_system(write: Write) -> None:
    url = to_memory(write(), "memory://ckpt")
    load_weights(open_checkpoint(url), "generator", TwoStreamGenerator(MODEL))
    assert open_model(url)[1].step == 7


def test_open_model_draws_as_the_package_does_from_the_same_folder(write: Write, tmp_path: Path) -> None:
    folder = write()
    snapshot(folder.parent, folder.name)
    expected = vgan.load(folder).sample(2, seed=1)
    exported = tmp_path / "exported"
    model = vgan.load(folder)
    vgan.save(exported, model.config, {"generator": model.generator})
    for url, step in ((folder.parent, 7), (folder, 7), (exported, None), (to_memory(exported, "memory://model"), None)):
        found, source = open_model(str(url))
        assert (source.step if source else None) == step
        assert np.array_equal(found.sample(2, seed=1).video, expected.video)


def test_open_model_takes_the_moving_average_unless_told_not_to(write: Write) -> None:
    folder = str(write(generator=TwoStreamGenerator(MODEL), generator_ema=TwoStreamGenerator(MODEL)))
    for ema, name in ((True, "generator_ema"), (False, "generator")):
        expected = TwoStreamGenerator(MODEL)
        load_weights(open_checkpoint(folder), name, expected)
        found = open_model(folder, ema=ema)[0].generator.state_dict()
        assert all(torch.equal(v, found[k]) for k, v in expected.state_dict().items())


def test_open_model_where_there_is_none_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no checkpoint at"):
        open_model(str(tmp_path))
    with pytest.raises(BadInput, match="No such file"):
        open_model(str(tmp_path / "golf.t7"))
    with pytest.raises(BadInput, match="read from local paths only"):
        open_model("s3://models/golf.t7")


def test_open_checkpoint_of_settings_this_version_does_not_know_is_bad_input(write: Write) -> None:
    folder = write()
    state = storage.read_json(str(folder / "state.json"))
    state["model"]["depth"] = 9
    storage.write_json(str(folder / "state.json"), state)
    with pytest.raises(BadInput, match=r"cannot make: .*depth"):
        open_checkpoint(str(folder))
