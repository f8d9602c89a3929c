"""Training on the session's Ray: messages, checkpoints after a failure, and other numbers of workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
from safetensors.torch import load_file

from cluster.checkpoints import store
from cluster.observability.tracking_config import TrackingConfig
from cluster.training.config import TrainConfig
from cluster.training.trainer import fit
from vgan.errors import InputError
from vgan.models.config import ModelConfig
from vgan.training.config import ObjectiveConfig

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture
def config(write_dataset: Callable[..., object], tmp_path: Path, tracking_uri: str) -> Callable[..., TrainConfig]:
    write_dataset(str(tmp_path / "clips"), 24)

    def make(**settings: object) -> TrainConfig:
        common = {
            "data": str(tmp_path / "clips"),
            "out": str(tmp_path / "runs"),
            "model": ModelConfig(base_width=4, num_frames=16, size=32),
            "tracking": TrackingConfig(uri=tracking_uri),
            "batch_size": 8,
            "log_every": 1,
        }
        return TrainConfig(**common | settings)  # type: ignore[arg-type]

    return make


def weights(checkpoint: store.Checkpoint) -> dict[str, torch.Tensor]:
    tensors = {p.stem: load_file(p) for p in Path(checkpoint.url, "weights").iterdir()}
    return {f"{name}.{key}": v for name, values in tensors.items() for key, v in values.items()}


def test_diverged_training_stops_and_keeps_the_previous_checkpoint(
    config: Callable[..., TrainConfig], tmp_path: Path, tracking_uri: str
) -> None:
    model = ModelConfig(architecture="autoencoder", base_width=4, num_frames=16, size=32)
    wild = config(steps=9, checkpoint_every=1, model=model, objective=ObjectiveConfig(learning_rate=1e30))
    with pytest.raises(
        InputError, match=r"loss/reconstruction.* not finite at step 2: stopped, the previous checkpoint"
    ):
        fit(wild)
    checkpoint = store.open_checkpoint(str(tmp_path / "runs" / "gan"))
    assert checkpoint.step == 1
    assert mlflow.MlflowClient(tracking_uri).get_run(checkpoint.mlflow_run_id).info.status == "FAILED"


def test_training_continues_with_another_number_of_workers_that_does_not_divide_the_batch(
    config: Callable[..., TrainConfig], tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fit(config(steps=2, batch_size=9, zero_stage=1, workers="2"))
    assert "GFLOP per clip and step" in capsys.readouterr().out
    before = weights(first)
    second = fit(config(steps=3, batch_size=9, zero_stage=1, workers="1-1"))
    assert (second.step, second.clips_seen) == (3, 27)
    assert second.mlflow_run_id == first.mlflow_run_id
    after = weights(second)
    moved = {key: float((after[key].double() - before[key].double()).abs().max()) for key in before}
    assert 0 < moved["generator.stem.0.weight"] < 1e-3  # three steps of Adam at 2e-4
    run = mlflow.MlflowClient(tracking_uri).get_run(first.mlflow_run_id)
    client = mlflow.MlflowClient(tracking_uri)
    assert [m.value for m in client.get_metric_history(run.info.run_id, "workers")] == [2, 2, 1]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "by_clips/loss/generator")] == [9, 18, 27]
    assert {"system/memory_percent", "checkpoint/stall_s", "data/mb_per_s"} <= run.data.metrics.keys()
    assert {"settings.json", "environment.txt"} <= {f.path for f in client.list_artifacts(run.info.run_id)}


def test_training_is_refused_if_all_checkpoints_are_damaged_and_removes_none(
    config: Callable[..., TrainConfig],
) -> None:
    checkpoint = fit(config(steps=1))
    (Path(checkpoint.url) / "state.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"every checkpoint in .* is damaged \(step_00000001\S+: state.json differs from"
    ):
        fit(config(steps=2))
    assert Path(checkpoint.url).is_dir()
