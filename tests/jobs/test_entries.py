"""Every job on tiny data, in the order of the pipeline: files on disk and runs in MLflow."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import av
import matplotlib.pyplot as plt
import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import vgan
from cluster.checkpoints.store import Checkpoint, open_checkpoint
from cluster.dataset.manifest import Manifest, read_manifest
from cluster.evaluation.config import EvaluateConfig, InspectConfig
from cluster.generation.config import GenerateConfig, PredictConfig
from cluster.sources.config import AcquireConfig
from cluster.training.config import TrainConfig
from cluster.transfer.sweep_results import format_table
from jobs import acquire, cli, evaluate, finetune, generate, inspect, predict, prepare, train
from jobs.finetune import FinetuneJobConfig
from jobs.prepare import PrepareConfig
from vgan.errors import InputError
from vgan.models.pretrained import save
from vgan.synthetic import draw_clip, make_action_set
from vgan.video.encode import write_mp4

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

CONFIG_CLASSES = {
    acquire: AcquireConfig,
    prepare: PrepareConfig,
    train: TrainConfig,
    generate: GenerateConfig,
    inspect: InspectConfig,
    predict: PredictConfig,
    finetune: FinetuneJobConfig,
    evaluate: EvaluateConfig,
}
SMALL_VIDEO = ("clip.num_frames=16", "clip.size=32", "clip.stride=8", "decode.short_side=96", "stabilize.size=96")


def files(folder: Path) -> dict[Path, int]:
    """Return the modification time of every file below a folder."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def run(job: Any, *arguments: str) -> int:
    return cli.run(job.main, CONFIG_CLASSES[job], job.ABOUT, arguments)


# ---- pipeline ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def tracking(root: Path) -> str:
    return f"tracking.uri=sqlite:///{root}/mlflow.db"


@pytest.fixture(scope="module")
def client(tracking: str) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking.partition("=")[2])


@pytest.fixture(scope="module")
def listed(root: Path) -> Path:
    """Sources manifest of a folder with three videos and one other file."""
    for action in ("Spin", "Bounce", "Circle"):
        path = root / "videos" / action / "a clip.mp4"
        path.parent.mkdir(parents=True)
        write_mp4(draw_clip(action, num_frames=56, size=(96, 128)).frames, path, 25.0)
    (root / "videos" / "notes.txt").write_text("no video")
    assert run(acquire, f"folder={root}/videos", f"out={root}/sources.parquet") == 0
    return root / "sources.parquet"


@pytest.fixture(scope="module")
def clips(root: Path, listed: Path, tracking: str) -> Path:
    assert run(prepare, f"sources={listed}", f"out={root}/clips", *SMALL_VIDEO, tracking) == 0
    return root / "clips"


def train_arguments(root: Path, clips: Path, tracking: str) -> list[str]:
    model = ["model.base_width=4", "model.num_frames=16", "model.size=32"]
    intervals = ["log_every=1", "checkpoint_every=2", "sample_every=2", "keep_latest_k=1"]
    return [f"data={clips}", f"out={root}/runs", "workers=2", "batch_size=8", *model, *intervals, tracking]


@pytest.fixture(scope="module")
def trained(root: Path, clips: Path, tracking: str) -> list[Checkpoint]:
    """Checkpoints of the run "gan" after two steps, and after the same command with steps=4."""
    checkpoints = []
    for steps in (2, 4):
        assert run(train, *train_arguments(root, clips, tracking), f"steps={steps}") == 0
        checkpoints.append(open_checkpoint(f"{root}/runs/gan"))
    return checkpoints


@pytest.fixture(scope="module")
def actions(root: Path) -> Path:
    make_action_set(root / "actions", ("Spin", "Grow"), groups=3, videos_per_group=2, num_frames=24, size=(96, 128))
    return root / "actions"


def finetune_arguments(root: Path, actions: Path, tracking: str) -> list[str]:
    video = [f"video.{argument}" for argument in SMALL_VIDEO]
    sweep = [
        "initializations=[vgan,random]",
        "fractions=[0.5,1]",
        "seeds=0",
        "finetune.iterations=3",
        "finetune.batch_size=4",
    ]
    return [f"ucf101={actions}", f"checkpoint={root}/runs/gan", f"out={root}/finetune", *sweep, *video, tracking]


@pytest.fixture(scope="module")
def swept(root: Path, trained: list[Checkpoint], actions: Path, tracking: str) -> Path:
    del trained  # must exist before
    assert run(finetune, *finetune_arguments(root, actions, tracking)) == 0
    return root / "finetune"


def runs_of(client: mlflow.MlflowClient, experiment: str, query: str = "") -> list[mlflow.entities.Run]:
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id], query))


# ---- acquire, prepare --------------------------------------------------------------------------------------------


def test_acquire_lists_the_videos_of_a_folder(listed: Path) -> None:
    rows = pq.read_table(listed).to_pylist()
    assert [row["source_id"] for row in rows] == [f"{action}/a clip.mp4" for action in ("Bounce", "Circle", "Spin")]
    assert all(Path(row["uri"]).stat().st_size == row["bytes"] for row in rows)


def test_acquire_lists_one_side_of_a_ucf101_split_with_labels(root: Path, actions: Path) -> None:
    out = root / "ucf101.parquet"
    assert run(acquire, f"ucf101={actions}", "split=2", "subset=test", f"out={out}") == 0
    rows = pq.read_table(out).to_pylist()
    assert [(row["label"], row["split"]) for row in rows] == [("Grow", "test")] * 2 + [("Spin", "test")] * 2
    assert all("_g02_" in row["uri"] for row in rows)


def test_prepare_writes_a_dataset_and_a_run_tagged_with_its_digest(clips: Path, client: mlflow.MlflowClient) -> None:
    manifest = read_manifest(str(clips))
    assert manifest.counts["sources"] == manifest.counts["accepted"] == 3
    assert manifest.counts["clips"] == 18
    config = cli.load_config(PrepareConfig, [f"config={clips}/settings.yaml"])
    assert (config.clip.size, config.clip.stride, config.out) == (32, 8, str(clips))
    (mlflow_run,) = runs_of(client, "prepare")
    assert mlflow_run.info.status == "FINISHED"
    assert mlflow_run.data.tags["dataset_hash"] == manifest.digest
    assert mlflow_run.data.metrics["counts/clips"] == 18
    assert [f.path for f in client.list_artifacts(mlflow_run.info.run_id)] == ["funnel.txt", "manifest.json"]


def test_prepare_again_reuses_its_work_and_its_run(
    listed: Path,
    clips: Path,
    tracking: str,
    client: mlflow.MlflowClient,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {p: p.stat().st_mtime_ns for folder in ("shards", "work") for p in (clips / folder).rglob("*")}
    assert run(prepare, f"sources={listed}", f"out={clips}", *SMALL_VIDEO, tracking) == 0
    output = capsys.readouterr().out
    assert "already prepared" in output
    assert "sources = accepted + rejected: 3 = 3 + 0" in output
    assert {p: p.stat().st_mtime_ns for folder in ("shards", "work") for p in (clips / folder).rglob("*")} == before
    assert len(runs_of(client, "prepare")) == 1


def test_prepare_fails_if_too_many_videos_are_rejected(
    root: Path, tracking: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = root / "half"
    folder.mkdir()
    (folder / "good.mp4").write_bytes((root / "videos" / "Spin" / "a clip.mp4").read_bytes())
    (folder / "bad.mp4").write_bytes(b"no video")
    arguments = [f"sources={folder}", f"out={root}/half-clips", *SMALL_VIDEO, tracking]
    assert run(prepare, *arguments, "max_reject_fraction=0.4") == 2
    assert "50% of the videos were rejected, more than max_reject_fraction=0.4" in capsys.readouterr().err
    assert run(prepare, *arguments, "max_reject_fraction=0.5") == 0


# ---- train -------------------------------------------------------------------------------------------------------


def test_train_again_with_the_same_name_resumes_the_run(
    trained: list[Checkpoint], clips: Path, client: mlflow.MlflowClient
) -> None:
    assert [(c.step, c.clips_seen) for c in trained] == [(2, 16), (4, 32)]
    assert trained[0].mlflow_run_id == trained[1].mlflow_run_id
    (mlflow_run,) = runs_of(client, "gan", "tags.`mlflow.runName` = 'gan'")
    assert (mlflow_run.info.run_id, mlflow_run.info.status) == (trained[0].mlflow_run_id, "FINISHED")
    for name in ("loss/discriminator", "loss/generator", "mask/mean", "data/wait_s", "throughput/clips_per_s"):
        history = client.get_metric_history(mlflow_run.info.run_id, name)
        assert [point.step for point in history] == [1, 2, 3, 4]
        assert np.isfinite([point.value for point in history]).all()
    digest = read_manifest(str(clips)).digest
    assert mlflow_run.data.tags["dataset_hash"] == trained[1].dataset_digest == digest
    assert mlflow_run.data.tags["checkpoint_uri"] == trained[1].url
    assert {d.dataset.digest for d in mlflow_run.inputs.dataset_inputs} == {digest[:36]}
    assert mlflow_run.data.params["model.base_width"] == "4"
    assert "images" in [f.path for f in client.list_artifacts(mlflow_run.info.run_id)]


def test_train_changes_the_weights_and_keeps_the_latest_checkpoints_only(root: Path, trained: list[Checkpoint]) -> None:
    folders = [p for p in (root / "runs" / "gan").iterdir() if p.name.startswith("step_")]
    assert [str(p) for p in folders] == [trained[1].url]
    weights = {p.stem: load_file(p) for p in (folders[0] / "weights").iterdir()}
    assert set(weights) == {"generator", "generator_ema", "discriminator"}
    moved = [(weights["generator"][k] - v).abs().max() for k, v in weights["generator_ema"].items()]
    assert max(moved) > 1e-5
    assert all(torch.isfinite(v).all() for tensors in weights.values() for v in tensors.values())


def test_interrupted_training_ends_with_the_weights_of_an_uninterrupted_run(
    root: Path, clips: Path, trained: list[Checkpoint], tracking: str
) -> None:
    arguments = [*train_arguments(root, clips, tracking), "name=straight", "zero_stage=1", "steps=4"]
    assert run(train, *arguments) == 0
    straight = open_checkpoint(f"{root}/runs/straight")
    for name in ("generator", "generator_ema", "discriminator"):
        one, other = (load_file(Path(c.url) / "weights" / f"{name}.safetensors") for c in (trained[1], straight))
        assert max(float((one[k].double() - other[k].double()).abs().max()) for k in one) < 1e-6, name


@pytest.mark.slow
def test_compiled_training_ends_near_the_weights_of_uncompiled_training(
    root: Path, clips: Path, trained: list[Checkpoint], tracking: str
) -> None:
    assert run(train, *train_arguments(root, clips, tracking), "name=compiled", "compile=true", "steps=4") == 0
    compiled = open_checkpoint(f"{root}/runs/compiled")
    for name in ("generator", "discriminator"):
        one, other = (load_file(Path(c.url) / "weights" / f"{name}.safetensors") for c in (trained[1], compiled))
        assert one.keys() == other.keys()
        assert max(float((one[k].double() - other[k].double()).abs().max()) for k in one) < 5e-3, name


def test_train_refuses_other_settings_for_an_existing_name(
    root: Path, clips: Path, trained: list[Checkpoint], tracking: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(root / "runs")
    assert run(train, *train_arguments(root, clips, tracking), "steps=9", "model.base_width=8", "seed=3") == 2
    error = capsys.readouterr().err
    assert "model.base_width was 4, now 8" in error
    assert "seed was 0, now 3" in error
    assert files(root / "runs") == before
    assert open_checkpoint(f"{root}/runs/gan") == trained[1]


# ---- generate ----------------------------------------------------------------------------------------------------


def read_video(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def varied(root: Path, trained: list[Checkpoint]) -> str:
    """Trained checkpoint with larger weights: after four training steps all its clips are the same gray."""
    folder = root / "varied"
    shutil.copytree(trained[1].url, folder)
    for number, path in enumerate(sorted((folder / "weights").glob("generator*"))):
        torch.manual_seed(number)
        tensors = load_file(path)
        larger = {k: v + 0.1 * torch.randn_like(v) for k, v in tensors.items() if k.endswith(("weight", "bias"))}
        save_file(tensors | larger, path)
    return f"checkpoint={folder}"


def test_generate_reads_the_newest_checkpoint_of_a_run(
    root: Path, trained: list[Checkpoint], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(generate, f"checkpoint={root}/runs/gan", f"out={root}/gray", "num_clips=1") == 0
    assert f"1 clips from step {trained[1].step}, " in capsys.readouterr().out


def test_generate_writes_videos_that_play(root: Path, varied: str) -> None:
    out = root / "samples"
    assert run(generate, varied, f"out={out}", "num_clips=5", "seed=1") == 0
    names = {f"sample-{n:04d}.mp4" for n in range(5)} | {"grid.mp4", "panels.mp4", "settings.yaml"}
    assert {p.name for p in out.iterdir()} == names
    samples = [read_video(out / f"sample-{n:04d}.mp4") for n in range(5)]
    assert {s.shape for s in samples} == {(16, 32, 32, 3)}
    assert len({s.tobytes() for s in samples}) == 5
    for name in ("grid", "panels"):
        video = read_video(out / f"{name}.mp4")
        assert len(video) == 16
        assert min(video.shape[1:3]) > 64


def test_generate_depends_only_on_seed_and_weights(root: Path, varied: str) -> None:
    variants = {"a": (), "b": (), "seed": ("seed=2",), "raw": ("ema=false",)}
    for name, more in variants.items():
        assert run(generate, varied, "num_clips=1", "format=gif", "panels=false", *more, f"out={root}/gifs/{name}") == 0
    drawn = {name: (root / "gifs" / name / "sample-0000.gif").read_bytes() for name in variants}
    assert drawn["a"] == drawn["b"]
    assert len(set(drawn.values())) == 3
    assert not (root / "gifs" / "a" / "panels.gif").exists()
    with Image.open(root / "gifs" / "raw" / "sample-0000.gif") as gif:
        assert (gif.n_frames, gif.size) == (16, (32, 32))


# ---- other architectures ------------------------------------------------------------------------------------------


def train_architecture(root: Path, clips: Path, tracking: str, architecture: str) -> Checkpoint:
    arguments = [
        *train_arguments(root, clips, tracking),
        f"model.architecture={architecture}",
        f"name={architecture}",
        "workers=1",
        "steps=2",
    ]
    assert run(train, *arguments) == 0
    return open_checkpoint(f"{root}/runs/{architecture}")


def test_autoencoder_trains_and_generates_from_a_mixture_of_its_codes(
    root: Path, clips: Path, tracking: str, client: mlflow.MlflowClient
) -> None:
    checkpoint = train_architecture(root, clips, tracking, "autoencoder")
    assert {p.stem for p in (Path(checkpoint.url) / "weights").iterdir()} == {"generator", "generator_ema"}
    metrics = client.get_run(checkpoint.mlflow_run_id).data.metrics
    assert 0 < metrics["loss/reconstruction"] < 4
    assert "loss/discriminator" not in metrics
    out = root / "redrawn"
    assert run(generate, f"checkpoint={checkpoint.url}", f"out={out}", "num_clips=2", "components=3") == 0
    assert len(load_file(out / "mixture.safetensors")["weights"]) == 3
    assert read_video(out / "sample-0001.mp4").shape == (16, 32, 32, 3)


def test_future_model_trains_and_predicts_images_videos_and_a_dataset(
    root: Path, clips: Path, tracking: str, client: mlflow.MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = train_architecture(root, clips, tracking, "future")
    metrics = client.get_run(checkpoint.mlflow_run_id).data.metrics
    assert {"loss/first_frame", "loss/generator", "loss/discriminator"} <= metrics.keys()
    Image.new("RGB", (90, 60), (200, 30, 30)).save(root / "red.png")
    images = f"images=[{root}/red.png,{root}/videos/Spin/a clip.mp4]"
    out = root / "predicted"
    capsys.readouterr()
    assert run(predict, f"checkpoint={checkpoint.url}", images, f"data={clips}", f"out={out}", "format=[mp4,png]") == 0
    output = capsys.readouterr().out
    assert "a clip.mp4, with the true future" in output
    assert "3 of the 3 videos of data= are in the training set: not held out" in output
    alone, beside = (read_video(out / f"future-{n:04d}.mp4") for n in (0, 1))
    assert len(alone) == len(beside) == 16
    assert beside.shape[2] > alone.shape[2]  # the true future is shown too
    errors = json.loads((out / "errors.json").read_text())
    assert errors["protocol"].startswith("mse_frames2-16_18clips_")
    assert set(errors["mse"]) == {"model", "copy the frame", "mean future"}
    assert all(len(error["by_frame"]) == 15 and error["mean"] > 0 for error in errors["mse"].values())


def test_inspect_shows_units_of_a_discriminator_and_of_an_encoder(
    root: Path, clips: Path, trained: list[Checkpoint], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"data={clips}", f"checkpoint={trained[1].url}", f"out={root}/units", "top=3"]
    assert run(inspect, *arguments, "layer=2", "num_units=4") == 0
    assert "receptive field of 10 pixels" in capsys.readouterr().out
    result = json.loads((root / "units" / "units.json").read_text())
    assert 1 <= len(result["units"]) <= 4
    for unit in result["units"]:
        assert len(set(unit["videos"])) == len(unit["rows"]) <= 3
        assert unit["peaks"] == sorted(unit["peaks"], reverse=True)
        assert Image.open(root / "units" / f"unit-{unit['number']:04d}.gif").n_frames > 1
    assert Image.open(root / "units" / "sheet.png").size[1] > 100
    assert run(inspect, *arguments, "layer=5") == 2
    assert run(inspect, *arguments, "units=[99]", "layer=1") == 2
    assert run(inspect, *arguments, "network=encoder") == 2


# ---- finetune ----------------------------------------------------------------------------------------------------


def children(client: mlflow.MlflowClient) -> tuple[mlflow.entities.Run, list[mlflow.entities.Run]]:
    (parent,) = runs_of(client, "transfer", "tags.kind = 'sweep' and tags.`mlflow.runName` = 'sweep'")
    return parent, runs_of(client, "transfer", f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")


def test_finetune_logs_a_parent_run_and_a_child_run_per_combination(
    swept: Path, trained: list[Checkpoint], client: mlflow.MlflowClient
) -> None:
    parent, child_runs = children(client)
    digest = read_manifest(str(swept / "clips")).digest
    combinations = {(r.data.tags["init"], r.data.tags["fraction"], r.data.tags["seed"]) for r in child_runs}
    assert combinations == {(i, f, "0") for i in ("vgan", "random") for f in ("0.5", "1.0")}
    assert len(child_runs) == 4
    for entry in (parent, *child_runs):
        assert entry.info.status == "FINISHED"
        assert entry.data.tags["dataset_hash"] == digest
    for child in child_runs:
        known = child.data.tags["init"] == "vgan"
        assert child.data.tags.get("pretraining_dataset_hash") == (trained[1].dataset_digest if known else None)
        assert child.data.tags.get("checkpoint_uri") == (trained[1].url if known else None)
    for child in child_runs:
        (accuracy,) = (v for k, v in child.data.metrics.items() if k.startswith("accuracy/"))
        assert accuracy in (0.0, 0.25, 0.5, 0.75, 1.0)  # four test videos
        share = {"0.5": 4, "1.0": 8}[child.data.tags["fraction"]]
        assert child.data.metrics["data/num_labelled_clips"] == share
        assert [p.step for p in client.get_metric_history(child.info.run_id, "loss/finetune")] == [1, 2, 3]
        subset = Path(client.download_artifacts(child.info.run_id, "subset.txt")).read_text().split()
        assert len(subset) == share
        assert child.inputs.dataset_inputs


def test_finetune_logs_figures_to_the_parent_run_and_writes_results(swept: Path, client: mlflow.MlflowClient) -> None:
    parent, child_runs = children(client)
    figures = {f.path for f in client.list_artifacts(parent.info.run_id, "figures")}
    names = [path.removeprefix("figures/").partition("_ucf101")[0] for path in sorted(figures)]
    assert names == ["figure_4a", "figure_4a", "figure_4bc", "figure_4bc"]
    for path in figures:
        if path.endswith(".png"):
            with Image.open(client.download_artifacts(parent.info.run_id, path)) as image:
                assert min(image.size) > 100
    curve = client.get_metric_history(parent.info.run_id, "curve/accuracy_vgan")
    assert [point.step for point in curve] == [50, 100]
    rows = json.loads((swept / "sweep" / "results.json").read_text())
    logged = {c.data.tags["init"] + c.data.tags["fraction"]: c for c in child_runs}
    for row in rows:
        assert logged[f"{row['init']}{row['fraction']}"].data.metrics[f"accuracy/{row['protocol']}"] == row["accuracy"]
    table = format_table(rows)
    texts = ("vgan", "random", "vgan, over random", "all fractions: ", rows[0]["protocol"])
    assert all(text in table for text in texts)


def test_finetune_again_repeats_no_child_run(
    root: Path, swept: Path, actions: Path, tracking: str, client: mlflow.MlflowClient
) -> None:
    before = {p: p.stat().st_mtime_ns for p in (swept / "sweep").glob("*-*.json")}
    ended = {r.info.run_id: r.info.end_time for r in children(client)[1]}
    assert len(before) == len(ended) == 4
    (swept / "sweep" / "results.json").unlink()
    assert run(finetune, *finetune_arguments(root, actions, tracking)) == 0
    assert {p: p.stat().st_mtime_ns for p in (swept / "sweep").glob("*-*.json")} == before
    assert {r.info.run_id: r.info.end_time for r in children(client)[1]} == ended
    assert (swept / "sweep" / "results.json").exists()


def test_finetune_report_redraws_sweeps_from_mlflow_alone(
    swept: Path, tracking: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads((swept / "sweep" / "results.json").read_text())
    capsys.readouterr()
    assert run(finetune, "action=report", "sweep=sweep", f"out={tmp_path}", tracking) == 0
    assert format_table(rows) in capsys.readouterr().out
    kinds = sorted(path.suffix for path in (tmp_path / "sweep").iterdir())
    assert kinds == [".csv", ".html", ".html", ".png", ".png"]
    assert run(finetune, "action=report", "sweep=[sweep,nowhere]", f"out={tmp_path}", tracking) == 2
    assert "no sweep 'nowhere' in MLflow's experiment 'transfer'" in capsys.readouterr().err


@pytest.mark.usefixtures("swept")
def test_finetune_is_drawn_by_the_script_of_the_jobs_page(
    tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).resolve().parents[2] / "jobs/README.md").read_text()
    (script,) = (s for s in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "figure_4b" in s)
    script = script.replace("sqlite:///mlflow.db", tracking.partition("=")[2]).replace("'figure4'", "'sweep'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "legend", lambda: labels.extend(plt.gca().get_legend_handles_labels()[1]))
    labels: list[str] = []
    exec(script, {})
    plt.close("all")
    assert labels == ["random", "vgan"]
    assert Image.open(tmp_path / "figure_4b.png").size[0] > 300


def test_finetune_validates_on_held_out_groups_with_several_clips_per_video(
    root: Path, swept: Path, actions: Path, tracking: str
) -> None:
    arguments = [
        w for w in finetune_arguments(root, actions, tracking) if not w.startswith(("initializations", "fractions"))
    ]
    more = [
        "name=choose",
        "validation=true",
        "validation_fold=1",
        "clips_per_test_video=3",
        "initializations=[logistic,random_torch]",
        "fractions=1",
    ]
    assert run(finetune, *arguments, *more, "extra_checkpoints={again: " + f"{root}/runs/gan" + "}") == 0
    rows = json.loads((swept / "choose" / "results.json").read_text())
    assert [row["init"] for row in rows] == ["again", "logistic", "random_torch"]
    assert all("-split1-heldout1_3clip" in row["protocol"] for row in rows)
    child = json.loads(next((swept / "choose").glob("logistic-*.json")).read_text())
    groups = [{name.partition("_c")[0] for name in child[side]} for side in ("subset", "tested")]
    assert not groups[0] & groups[1]
    assert len(child["tested"]) + child["num_train"] == 8  # videos of the training list; the test list is not used


def test_finetune_on_two_workers_per_run(root: Path, swept: Path, actions: Path, tracking: str) -> None:
    arguments = [
        w for w in finetune_arguments(root, actions, tracking) if not w.startswith(("initializations", "fractions"))
    ]
    assert run(finetune, *arguments, "name=wide", "workers=2", "initializations=vgan", "fractions=1") == 0
    (row,) = json.loads((swept / "wide" / "results.json").read_text())
    child = json.loads((swept / "wide" / "vgan-f1-seed0-split1.json").read_text())
    narrow = json.loads((swept / "sweep" / "vgan-f1-seed0-split1.json").read_text())
    assert len(row["correct"]) == len(child["tested"]) == 4
    assert len(child["losses"]) == 3
    assert child["losses"][0] == pytest.approx(narrow["losses"][0], abs=0.5)  # equal except for batch norm and dropout
    assert child["losses"] != narrow["losses"]


def test_finetune_adds_an_initialization_to_a_sweep(root: Path, swept: Path, actions: Path, tracking: str) -> None:
    arguments = [
        w for w in finetune_arguments(root, actions, tracking) if not w.startswith(("initializations", "fractions"))
    ]
    arguments += ["name=grows", "fractions=[0.5,1]"]
    assert run(finetune, *arguments, "initializations=random") == 0
    assert run(finetune, *arguments, "initializations=[random,random_torch]") == 0
    rows = json.loads((swept / "grows" / "results.json").read_text())
    assert [(r["init"], r["fraction"]) for r in rows] == [(i, f) for i in ("random", "random_torch") for f in (0.5, 1)]
    alone = [w for w in arguments if not w.startswith("checkpoint")]
    assert (
        run(finetune, *alone, "initializations=random", "model.base_width=5") == 2
    )  # the same initialization of another network


def test_finetune_accepts_weights_of_unknown_training_set_only_with_allow_test_leakage(
    root: Path,
    swept: Path,
    actions: Path,
    tracking: str,
    trained: list[Checkpoint],
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = vgan.load(trained[1].url)
    assert model.generator is not None
    assert model.discriminator is not None
    save(root / "exported", model.config, {"discriminator": model.discriminator})
    arguments = [
        w
        for w in finetune_arguments(root, actions, tracking)
        if not w.startswith(("initializations", "fractions", "checkpoint"))
    ]
    arguments += ["name=exported", "fractions=1", "initializations=vgan", f"checkpoint={root}/exported"]
    assert run(finetune, *arguments) == 2
    assert "does not say what it was trained on" in capsys.readouterr().err
    assert run(finetune, *arguments, "allow_test_leakage=true") == 0
    (row,) = json.loads((swept / "exported" / "results.json").read_text())
    (same,) = (
        r
        for r in json.loads((swept / "sweep" / "results.json").read_text())
        if (r["init"], r["fraction"]) == ("vgan", 1)
    )
    assert row["correct"] == same["correct"]
    assert row["remark"] == "pre-training set not known"
    save(root / "drawing", model.config, {"generator": model.generator})
    assert run(finetune, *arguments[:-1], f"checkpoint={root}/drawing", "name=none") == 2
    assert "holds no discriminator" in capsys.readouterr().err


def test_finetune_refuses_other_settings_for_an_existing_name(
    root: Path, swept: Path, actions: Path, tracking: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(swept)
    assert run(finetune, *finetune_arguments(root, actions, tracking), "finetune.iterations=5") == 2
    assert "finetune.iterations was 3, now 5" in capsys.readouterr().err
    assert files(swept) == before


# ---- evaluate ----------------------------------------------------------------------------------------------------


def test_evaluate_writes_table_results_and_card_and_logs_named_metrics(
    root: Path,
    clips: Path,
    trained: list[Checkpoint],
    swept: Path,
    tracking: str,
    client: mlflow.MlflowClient,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = root / "evaluated"
    arguments = [
        f"data={clips}",
        f"checkpoint={root}/runs/gan",
        f"out={out}",
        "num_clips=8",
        "bootstrap_samples=4",
        "extractor=pixels",
    ]
    arguments += ["reference=drawn", f"model_card={root}/card.html", f"sweep_results={swept}/sweep/results.json"]
    assert run(evaluate, *arguments, tracking) == 0
    assert (out / "table.txt").read_text() in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["real, reference", "real, training", "gan, step 4"]
    assert results["protocol"]["dataset_digest"] == read_manifest(str(clips)).digest
    assert results["protocol"]["reference_videos"] == 3
    name = "fvd8_pixels-r32_drawn_16f"
    (logged,) = runs_of(client, "evaluation", "tags.`mlflow.runName` = 'gan, step 4'")
    assert logged.data.metrics[name] == results["rows"][2]["metrics"][name]["value"]
    assert logged.data.tags["checkpoint_uri"] == trained[1].url
    assert logged.data.tags["training_run_id"] == trained[1].mlflow_run_id
    assert logged.info.status == "FINISHED"
    page = (root / "card.html").read_text()
    assert all(text in page for text in (name, "Transfer to action classification", "Nearest training clips"))
    assert Path(client.download_artifacts(logged.info.run_id, "card.html")).read_text() == page


# ---- errors of remote workers ------------------------------------------------------------------------------------


def test_run_prints_a_workers_bad_input_as_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @ray.remote
    def refuse() -> None:
        raise InputError("the clips of 's3://x' are gone")

    def job(_: GenerateConfig) -> None:
        ray.get(refuse.remote())

    assert cli.run(job, GenerateConfig, "about", []) == 2
    assert capsys.readouterr().err == "error: the clips of 's3://x' are gone\n"


@pytest.mark.usefixtures("swept")
def test_lineage_leads_from_a_child_run_back_to_the_dataset(clips: Path, client: mlflow.MlflowClient) -> None:
    manifest: Manifest = read_manifest(str(clips))
    child = next(c for c in children(client)[1] if c.data.tags["init"] == "vgan")
    (pretraining,) = runs_of(client, "gan", f"tags.checkpoint_uri = '{child.data.tags['checkpoint_uri']}'")
    (dataset,) = runs_of(client, "prepare", f"tags.dataset_hash = '{pretraining.data.tags['dataset_hash']}'")
    assert dataset.data.tags["dataset_hash"] == manifest.digest
