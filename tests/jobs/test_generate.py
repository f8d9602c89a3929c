"""`jobs.generate` on tiny networks of every architecture that generates from noise."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from PIL import Image

import vgan
from cluster.checkpoints.store import write_checkpoint_files
from cluster.dataset.manifest import Manifest, Shard, write_manifest
from cluster.dataset.shards import clip_row, clip_schema, shard_bytes
from cluster.generation.config import GenerateConfig
from jobs import cli, generate
from vgan.models.config import ModelConfig
from vgan.models.factory import make_networks
from vgan.models.gaussian_mixture import read_mixture
from vgan.records import Clip, ClipScores
from vgan.video.config import ClipSpec

MODEL = ModelConfig(base_width=2, z_size=5, num_frames=16, size=32)


def run(*arguments: str) -> int:
    return cli.run(generate.main, GenerateConfig, generate.ABOUT, arguments)


def make(config: ModelConfig) -> dict[str, torch.nn.Module]:
    """Return networks with large weights, whose clips differ; those of fresh networks are gray."""
    torch.manual_seed(0)
    networks = make_networks(config)
    for tensor in (t for n in networks.values() for t in n.parameters()):
        torch.nn.init.normal_(tensor, 0.0, 0.3)
    return networks


def pictures(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture
def dataset(tmp_path: Path) -> Manifest:
    """Dataset clips/ of twenty clips, each of one gray level, in shards of eight."""
    spec = ClipSpec(num_frames=16, size=32)
    shards = []
    for number, start in enumerate(range(0, 20, 8)):
        rows = []
        for n in range(start, min(start + 8, 20)):
            clip = Clip(start_s=0.0, shot=0, frames=np.full((16, 32, 32, 3), 12 * n, np.uint8), evidence=ClipScores())
            lineage = {"source_id": "v", "source_uri": "/v", "label": None, "split": None, "decoder": ""}
            rows.append(clip_row(clip, clip_id=f"clip-{n}", **lineage))
        data = shard_bytes(pa.Table.from_pylist(rows, clip_schema(spec)))
        path = tmp_path / "clips" / f"shard-{number}.parquet"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        shards.append(Shard(path=path.name, rows=len(rows), bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
    manifest = Manifest(clip=spec, config={}, counts={}, shards=shards, digest="d" * 64)
    write_manifest(manifest, str(tmp_path / "clips"))
    return manifest


@pytest.fixture
def autoencoder(tmp_path: Path, dataset: Manifest) -> Path:
    """Checkpoint of an autoencoder trained on the dataset."""
    config = replace(MODEL, architecture="autoencoder")
    lineage = {"dataset_url": f"{tmp_path}/clips", "dataset_digest": dataset.digest, "mlflow_run_id": "r"}
    state = {"step": 5, "clips_seen": 40, "model": asdict(config), **lineage}
    write_checkpoint_files(tmp_path / "step_5", state, make(config))
    return tmp_path / "step_5"


@pytest.mark.parametrize(("architecture", "columns"), [("two_stream", 4), ("one_stream", 1)])
def test_generate_writes_every_format(
    tmp_path: Path, architecture: str, columns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(MODEL, architecture=architecture)
    vgan.save(tmp_path / "model", config, make(config))
    out = tmp_path / "out"
    assert run(f"checkpoint={tmp_path}/model", f"out={out}", "num_clips=3", "format=[mp4,gif,png]") == 0
    stems = [*(f"sample-{n:04d}" for n in range(3)), "grid", "panels"]
    assert {p.name for p in out.iterdir()} == {f"{s}.{f}" for s in stems for f in ("mp4", "gif", "png")} | {
        "settings.yaml"
    }
    assert yaml.safe_load((out / "settings.yaml").read_text())["checkpoint"] == f"{tmp_path}/model"
    assert ("mask mean" in capsys.readouterr().out) == (architecture == "two_stream")
    cell = 2 * 32 + 4  # enlarged twice, and a gap
    assert pictures(out / "panels.mp4").shape[2] in range(columns * cell, columns * (cell + 6))
    assert pictures(out / "sample-0000.mp4").shape == (16, 32, 32, 3)


def test_generate_still_pictures_are_strips_of_the_clips(tmp_path: Path) -> None:
    vgan.save(tmp_path / "model", MODEL, make(MODEL))
    assert run(f"checkpoint={tmp_path}/model", f"out={tmp_path}/out", "num_clips=2", "format=png", "seed=4") == 0
    video = vgan.load(tmp_path / "model").sample(2, seed=4).video
    grid = np.asarray(Image.open(tmp_path / "out" / "grid.png"))
    for n, clip in enumerate(video):
        picture = np.asarray(Image.open(tmp_path / "out" / f"sample-000{n}.png"))
        assert picture.shape == (32, 4 * 32 + 3 * 4, 3)  # every fourth of 16 frames, with gaps
        for column, frame in enumerate(clip[::4]):
            assert np.array_equal(picture[:, column * 36 : column * 36 + 32], frame)
        assert np.array_equal(grid[32 * n : 32 * (n + 1)], picture)


def test_generate_from_an_autoencoder_fits_its_training_set_and_writes_the_mixture(
    tmp_path: Path, autoencoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"checkpoint={autoencoder}", f"out={tmp_path}/out", "num_clips=2", "format=gif", "components=3") == 0
    assert "only 20 clips" not in capsys.readouterr().out
    data = (tmp_path / "out" / "mixture.safetensors").read_bytes()
    mixture = read_mixture(data, "it")
    assert mixture.means.shape == (3, 5)
    model = replace(vgan.load(autoencoder), mixture=mixture)
    codes = model.encode(np.stack([np.full((16, 32, 32, 3), 12 * n, np.uint8) for n in range(20)]))
    np.testing.assert_allclose(mixture.weights @ mixture.means, codes.mean(axis=0), atol=0.01 * codes.std())
    (tmp_path / "out" / "sample-0000.gif").rename(tmp_path / "fitted.gif")
    (tmp_path / "clips" / "manifest.json").unlink()  # only the mixture remains
    arguments = [f"mixture={tmp_path}/out/mixture.safetensors", f"out={tmp_path}/again", "num_clips=2", "format=gif"]
    assert run(f"checkpoint={autoencoder}", *arguments) == 0
    again = (tmp_path / "again" / "sample-0000.gif").read_bytes()
    assert again == (tmp_path / "fitted.gif").read_bytes()
    assert again != (tmp_path / "again" / "sample-0001.gif").read_bytes()


def test_generate_reports_fewer_components_if_there_are_few_clips(
    tmp_path: Path, autoencoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"checkpoint={autoencoder}", f"out={tmp_path}/out", "num_clips=1", "format=png", "mixture_clips=18"]
    assert run(*arguments) == 0
    assert "only 18 clips: the mixture has 18 components instead of 256" in capsys.readouterr().out
    mixture = read_mixture((tmp_path / "out" / "mixture.safetensors").read_bytes(), "it")
    assert len(mixture.weights) == 18


def test_generate_from_an_exported_autoencoder_uses_its_exported_mixture(tmp_path: Path, autoencoder: Path) -> None:
    assert run(f"checkpoint={autoencoder}", f"out={tmp_path}/out", "num_clips=1", "format=gif", "components=2") == 0
    model = vgan.load(autoencoder)
    mixture = read_mixture((tmp_path / "out" / "mixture.safetensors").read_bytes(), "it")
    vgan.save(tmp_path / "exported", model.config, {"generator": model.generator}, mixture)
    assert run(f"checkpoint={tmp_path}/exported", f"out={tmp_path}/more", "num_clips=1", "format=gif") == 0
    one, other = (tmp_path / name / "sample-0000.gif" for name in ("out", "more"))
    assert one.read_bytes() == other.read_bytes()
