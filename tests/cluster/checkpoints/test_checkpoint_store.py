"""Checkpoints: exact round trip, errors that name the tensor or the folder, commits, pruning, asynchronous uploads."""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import vgan
from cluster.checkpoints import store
from cluster.checkpoints.async_writer import AsyncCheckpointWriter
from cluster.checkpoints.store import (
    Checkpoint,
    latest_checkpoint,
    load_weights,
    open_checkpoint,
    open_model,
    write_checkpoint_files,
)
from cluster.storage.files import read_json, write_bytes, write_json
from vgan.errors import InputError
from vgan.models.config import ModelConfig
from vgan.models.discriminator import Discriminator
from vgan.models.generator import TwoStreamGenerator

MODEL = ModelConfig(base_width=2, z_size=5, num_frames=16, size=32)
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Function that writes a checkpoint of random networks into runs/gan/step_<step>, committed by one rank."""

    def write(step: int = 7, model: ModelConfig = MODEL, error: float | None = None, **networks: nn.Module) -> Path:
        folder = tmp_path / "runs" / "gan" / f"step_{step:08d}"
        lineage = {"dataset_url": "/clips", "dataset_digest": "d" * 64, "mlflow_run_id": "r" * 32}
        state = {"step": step, "clips_seen": 8 * step, "model": asdict(model), "config": {}, **lineage}
        state |= {} if error is None else {"metrics": {"loss/reconstruction": error}}
        networks = networks or {"generator": TwoStreamGenerator(model), "discriminator": Discriminator(model)}
        scratch = tmp_path / "scratch" / folder.name
        write_checkpoint_files(scratch, state, networks)
        store.upload_checkpoint(scratch, str(folder), rank=0, world_size=1)
        return folder

    return write


def steps(run: Path) -> list[int]:
    """List the steps of the committed checkpoints."""
    return [open_checkpoint(url).step for url in store.list_committed(str(run))]


def test_weights_and_buffers_round_trip_bit_for_bit(write: Write) -> None:
    torch.manual_seed(1)
    G = TwoStreamGenerator(MODEL)
    G(torch.randn(4, 5))  # moves the batch-norm statistics
    checkpoint = open_checkpoint(str(write(generator=G)))
    other = TwoStreamGenerator(MODEL)
    load_weights(checkpoint, "generator", other)
    assert all(torch.equal(v, G.state_dict()[k]) for k, v in other.state_dict().items())
    assert checkpoint == Checkpoint(
        url=checkpoint.url, step=7, clips_seen=56, model=MODEL, dataset_url="/clips", dataset_digest="d" * 64,
        mlflow_run_id="r" * 32,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_width": 4}, r"background\.0\.0\.bias is 16 in the file, 32 in the network"),
        ({"z_size": 6}, r"background\.0\.0\.weight is 5x16x2x2 in the file, 6x16x2x2 in the network"),
        ({"num_frames": 32}, r"stem\.0\.weight is 5x16x1x2x2 in the file, 5x16x2x2x2 in the network"),
    ],
)
def test_load_weights_of_another_shape_names_tensor_and_shapes(
    write: Write, change: dict[str, int], message: str
) -> None:
    network = TwoStreamGenerator(replace(MODEL, **change))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(InputError, match=message) as caught:
        load_weights(open_checkpoint(str(write())), "generator", network)
    assert "generator.safetensors" in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_load_weights_of_another_network_names_the_missing_tensor(write: Write) -> None:
    with pytest.raises(InputError, match=r"(head|background)\S+ is missing in the file|missing in the network"):
        load_weights(open_checkpoint(str(write())), "generator", Discriminator(MODEL))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x80\x04 a pickle", b"\xff" * 64])
def test_load_weights_of_an_invalid_safetensors_file_is_bad_input(write: Write, content: bytes) -> None:
    folder = write()
    (folder / "weights" / "generator.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read weights from .*generator\.safetensors"):
        load_weights(open_checkpoint(str(folder)), "generator", TwoStreamGenerator(MODEL))


def test_load_weights_of_a_missing_file_is_bad_input(write: Write) -> None:
    with pytest.raises(InputError, match=r"generator_ema\.safetensors"):
        load_weights(open_checkpoint(str(write())), "generator_ema", TwoStreamGenerator(MODEL))


def test_open_checkpoint_of_a_run_takes_its_newest(write: Write) -> None:
    older, newer = write(step=3), write(step=12)
    run = older.parent
    assert open_checkpoint(str(run)).step == 12
    assert open_checkpoint(f"{run}/").url == str(newer)
    assert open_checkpoint(str(older)).step == 3
    assert latest_checkpoint(str(run)) == str(newer)


def test_open_checkpoint_without_a_checkpoint_names_valid_urls(tmp_path: Path, write: Write) -> None:
    unfinished = write()
    (unfinished / "files-0-of-1.json").unlink()  # its upload was interrupted
    (tmp_path / "started").mkdir()
    for url in (tmp_path / "nowhere", tmp_path / "started", unfinished.parent):
        with pytest.raises(InputError, match=f"no checkpoint at '{url}': name a run's folder"):
            open_checkpoint(str(url))


# ---- commits, selection, pruning ---------------------------------------------------------------------------------


def part(folder: Path, url: str, rank: int, world_size: int) -> None:
    """Upload the part of one of several ranks."""
    folder.mkdir(parents=True)
    (folder / f"part-{rank}").write_bytes(bytes([rank]) * 1000)
    store.upload_checkpoint(folder, url, rank, world_size)


def test_a_checkpoint_is_committed_once_every_rank_has_uploaded_its_list(tmp_path: Path) -> None:
    run, url = str(tmp_path / "run"), str(tmp_path / "run" / "step_00000004_abc")
    for count, rank in enumerate((2, 0, 1), start=1):
        assert store.latest_checkpoint(run) is None
        part(tmp_path / str(rank), url, rank, world_size=3)
        assert len(list(Path(url).glob("files-*-of-3.json"))) == count
    assert store.latest_checkpoint(run) == url
    store.download_checkpoint(url, tmp_path / "fetched")
    assert sorted(p.name for p in (tmp_path / "fetched").iterdir()) == ["part-0", "part-1", "part-2"]


def test_lists_of_different_world_sizes_do_not_commit_a_checkpoint(tmp_path: Path) -> None:
    run, url = str(tmp_path / "run"), str(tmp_path / "run" / "step_00000004_abc")
    part(tmp_path / "a", url, 0, world_size=2)
    part(tmp_path / "b", url, 1, world_size=3)
    assert store.list_committed(run) == []


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "file", "reason"),
    [
        (truncate, "weights/generator.safetensors", "weights/generator.safetensors differs from its hash"),
        (flip_a_bit, "weights/discriminator.safetensors", "weights/discriminator.safetensors differs from its hash"),
        (flip_a_bit, "state.json", "state.json differs from its hash"),
        (Path.unlink, "weights/generator.safetensors", "weights/generator.safetensors is missing"),
        (halve, "files-0-of-1.json", "a list of its files cannot be read"),
    ],
)
def test_fetch_newest_skips_a_damaged_checkpoint_with_a_warning(
    write: Write,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], object],
    file: str,
    reason: str,
) -> None:
    sound, damaged = write(step=3), write(step=12)
    damage(damaged / file)
    url = store.download_latest(str(sound.parent), tmp_path / "fetched")
    assert url == str(sound)
    assert open_checkpoint(str(tmp_path / "fetched" / sound.name)).step == 3
    assert f"{damaged} is DAMAGED ({reason}" in caplog.text


def test_fetch_newest_skips_an_incomplete_checkpoint(
    write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sound, unfinished = write(step=3), write(step=12)
    (unfinished / "files-0-of-1.json").unlink()
    assert store.download_latest(str(sound.parent), tmp_path / "fetched") == str(sound)
    assert f"{unfinished} is incomplete: skipped" in caplog.text


def test_fetch_newest_raises_if_all_checkpoints_are_damaged(write: Write, tmp_path: Path) -> None:
    for step in (3, 12):
        truncate(write(step=step) / "state.json")
    with pytest.raises(InputError, match=r"every checkpoint in .* is damaged \(step_00000012: .*step_00000003: "):
        store.download_latest(str(tmp_path / "runs" / "gan"), tmp_path / "fetched")


def test_fetch_newest_returns_none_before_the_first_checkpoint(tmp_path: Path) -> None:
    assert store.download_latest(str(tmp_path / "run"), tmp_path / "fetched") is None


def test_prune_removes_the_oldest_and_older_incomplete_ones(write: Write) -> None:
    folders = {step: write(step=step) for step in (1, 2, 3, 4, 5)}
    run = folders[1].parent
    for step in (2, 5):  # an old attempt, and a pending upload
        (folders[step] / "files-0-of-1.json").unlink()
    store.prune_checkpoints(str(run), 2)
    assert steps(run) == [4, 3]
    assert sorted(p.name for p in run.iterdir()) == [folders[step].name for step in (3, 4, 5)]


def test_prune_keeps_the_checkpoint_with_the_lowest_metric_too(write: Write) -> None:
    for step, error in ((1, 0.5), (2, 0.2), (3, 0.2), (4, math.nan), (5, 0.4), (6, None)):
        run = write(step=step, error=error).parent
    store.prune_checkpoints(str(run), 1, "loss/reconstruction")
    assert steps(run) == [6, 3]
    assert store.best_checkpoint(str(run), "loss/reconstruction") == str(run / "step_00000003")
    assert store.best_checkpoint(str(run), "loss/generator") is None


# ---- asynchronous uploads ----------------------------------------------------------------------------------------


def put(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(name.encode())


def test_saver_returns_before_the_upload_unless_wait_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, original_upload = threading.Event(), store.upload_checkpoint

    def slow(*args: Any) -> None:
        assert release.wait(30)
        original_upload(*args)

    monkeypatch.setattr("cluster.checkpoints.store.upload_checkpoint", slow)
    saver = AsyncCheckpointWriter(
        str(tmp_path), "abc", rank=0, world_size=1, prune=lambda: store.prune_checkpoints(str(tmp_path), 2)
    )
    saver.save(1, put("a"), wait=False)
    assert store.list_committed(str(tmp_path)) == []
    release.set()
    saver.save(2, put("b"), wait=True)
    saver.save(3, put("c"), wait=True)
    names = [f"{tmp_path}/step_0000000{step}_abc" for step in (3, 2)]
    assert store.list_committed(str(tmp_path)) == names
    assert (Path(names[0]) / "c").read_bytes() == b"c"


def test_saver_warns_of_a_failed_upload_and_waits_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original_upload, errors = (
        store.upload_checkpoint,
        iter([OSError("no connection"), OSError("still none"), None, None]),
    )

    def failing(*args: Any) -> None:
        error = next(errors)
        if error:
            raise error
        original_upload(*args)

    monkeypatch.setattr("cluster.checkpoints.store.upload_checkpoint", failing)
    saver = AsyncCheckpointWriter(
        str(tmp_path), "abc", rank=0, world_size=1, prune=lambda: store.prune_checkpoints(str(tmp_path), 2)
    )
    saver.save(1, put("a"), wait=False)
    with pytest.raises(OSError, match="still none"):
        saver.save(2, put("b"), wait=False)
    assert "a checkpoint was LOST (no connection)" in caplog.text
    saver.save(3, put("c"), wait=False)
    saver.close()
    assert steps_named(tmp_path) == ["step_00000003_abc"]
    assert not list(Path(tempfile.gettempdir()).glob("checkpoint-*/[abc]"))


def test_saver_warns_if_pruning_fails_and_keeps_the_new_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def failing() -> None:
        raise OSError("the store is busy")

    saver = AsyncCheckpointWriter(str(tmp_path), "abc", rank=0, world_size=1, prune=failing)
    saver.save(1, put("a"), wait=True)
    assert steps_named(tmp_path) == ["step_00000001_abc"]
    assert "cannot remove old checkpoints (the store is busy)" in caplog.text
    assert "LOST" not in caplog.text


def steps_named(run: Path) -> list[str]:
    """List the folders of the committed checkpoints."""
    return [url.rpartition("/")[2] for url in store.list_committed(str(run))]


# ---- models ------------------------------------------------------------------------------------------------------


def to_memory(folder: Path, url: str) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            write_bytes(f"{url}/{path.relative_to(folder)}", path.read_bytes())
    return url


def test_checkpoints_are_read_from_any_file_system(write: Write) -> None:
    url = to_memory(write(), "memory://ckpt")
    load_weights(open_checkpoint(url), "generator", TwoStreamGenerator(MODEL))
    assert open_model(url)[1].step == 7


def test_open_model_samples_equal_those_of_vgan_load(write: Write, tmp_path: Path) -> None:
    folder = write()
    expected = vgan.load(folder).sample(2, seed=1)
    exported = tmp_path / "exported"
    model = vgan.load(folder)
    vgan.save(exported, model.config, {"generator": model.generator})
    for url, step in ((folder.parent, 7), (folder, 7), (exported, None), (to_memory(exported, "memory://model"), None)):
        opened, source = open_model(str(url))
        assert (source.step if source else None) == step
        assert np.array_equal(opened.sample(2, seed=1).video, expected.video)


def test_open_model_loads_the_moving_average_unless_ema_is_false(write: Write) -> None:
    folder = str(write(generator=TwoStreamGenerator(MODEL), generator_ema=TwoStreamGenerator(MODEL)))
    for ema, name in ((True, "generator_ema"), (False, "generator")):
        expected = TwoStreamGenerator(MODEL)
        load_weights(open_checkpoint(folder), name, expected)
        weights = open_model(folder, ema=ema)[0].generator.state_dict()
        assert all(torch.equal(v, weights[k]) for k, v in expected.state_dict().items())


def test_open_model_without_a_model_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint at"):
        open_model(str(tmp_path))
    with pytest.raises(InputError, match="No such file"):
        open_model(str(tmp_path / "golf.t7"))
    with pytest.raises(InputError, match="read from local paths only"):
        open_model("s3://models/golf.t7")


def test_open_checkpoint_with_unknown_settings_is_bad_input(write: Write) -> None:
    folder = write()
    state = read_json(str(folder / "state.json"))
    state["model"]["depth"] = 9
    write_json(str(folder / "state.json"), state)
    with pytest.raises(InputError, match=r"cannot create: .*depth"):
        open_checkpoint(str(folder))
