"""Selection of real clips, cache, copies and the table, on datasets with known clips."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from cluster.checkpoints.store import write_checkpoint_files
from cluster.dataset.manifest import Manifest, read_manifest
from cluster.dataset.shards import read_frames
from cluster.evaluation.clip_features import ExtractionConfig, extract_real, find_nearest
from cluster.evaluation.config import EvaluateConfig
from cluster.evaluation.evaluate import Evaluation, _sample_groups, evaluate
from cluster.evaluation.models import open_evaluated_model, with_distinct_names
from cluster.evaluation.reference_set import sample_reference_set
from cluster.evaluation.results import format_table, log_evaluation, metric_kind, to_json
from cluster.observability.tracking_config import TrackingConfig
from cluster.reports.model_card import model_card
from vgan.errors import InputError
from vgan.metrics.nearest_neighbors import block_means, normalize_blocks
from vgan.models import pretrained
from vgan.models.config import ModelConfig
from vgan.models.factory import make_networks

MODEL = ModelConfig(base_width=2, z_size=5, num_frames=16, size=32, discriminator_norm="spectral")  # does not pickle


def networks(config: ModelConfig) -> dict[str, torch.nn.Module]:
    """Make networks whose clips differ, as untrained ones generate gray."""
    torch.manual_seed(0)
    found = make_networks(config)
    for tensor in (t for n in found.values() for t in n.parameters()):
        torch.nn.init.normal_(tensor, 0.0, 0.3)
    return found


@pytest.fixture
def dataset(tmp_path: Path, write_dataset) -> Manifest:
    """Write 150 clips of 75 videos to clips/, more than a row group."""
    return write_dataset(f"{tmp_path}/clips", num_clips=150, shard_rows=100)


def checkpoint(folder: Path, trained_on: str, digest: str, config: ModelConfig = MODEL) -> str:
    lineage = {"dataset_url": trained_on, "dataset_digest": digest, "mlflow_run_id": "r"}
    state = {"step": 3, "clips_seen": 24, "model": asdict(config), "metrics": {"mask/mean": 0.5}, **lineage}
    write_checkpoint_files(folder / "step_3", state, networks(config))
    return str(folder / "step_3")


def test_choose_takes_each_video_before_any_twice_and_follows_its_seed(tmp_path: Path, dataset: Manifest) -> None:
    found = sample_reference_set(f"{tmp_path}/clips", dataset, 75, seed=0)
    assert found.num_sources == 75
    assert (found.num_classes, len(found.rows), len(set(found.ids))) == (0, 75, 75)
    assert (np.diff(found.rows) > 0).all()
    assert found.digest == sample_reference_set(f"{tmp_path}/clips", dataset, 75, seed=0).digest
    assert found.digest != sample_reference_set(f"{tmp_path}/clips", dataset, 75, seed=1).digest
    rest = sample_reference_set(f"{tmp_path}/clips", dataset, 75, 0, without=found.ids)
    assert not set(rest.ids) & set(found.ids)
    with pytest.raises(InputError, match="num_clips=76 clips"):
        sample_reference_set(f"{tmp_path}/clips", dataset, 76, 0, without=found.ids)


def test_models_of_one_name_are_told_apart(tmp_path: Path, dataset: Manifest) -> None:
    urls = [checkpoint(tmp_path / side / "gan", f"{tmp_path}/clips", dataset.digest) for side in ("a", "b")]
    config = EvaluateConfig(data=f"{tmp_path}/clips", checkpoint=urls)
    subjects = with_distinct_names([open_evaluated_model(url, config, dataset) for url in urls])
    assert [subject.name for subject in subjects] == ["gan, step 3 (1)", "gan, step 3 (2)"]


def test_training_set_that_has_moved_is_known_by_its_digest(tmp_path: Path, dataset: Manifest, write_dataset) -> None:
    other = write_dataset(f"{tmp_path}/other", num_clips=20, seed=9)
    url = checkpoint(tmp_path / "gan", f"{tmp_path}/gone", dataset.digest)
    told = []
    for training in ("", f"{tmp_path}/other", f"{tmp_path}/clips"):
        config = EvaluateConfig(data=f"{tmp_path}/clips", checkpoint=[url], training_data=training)
        found = open_evaluated_model(url, config, dataset)
        told.append((found.training_url, found.training and found.training.digest))
    assert told == [("", None), ("", None), (f"{tmp_path}/clips", dataset.digest)]
    assert other.digest != dataset.digest


pytest_ray = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


class TestOnRay:
    """Tests that need Ray workers."""

    pytestmark = pytest_ray

    def test_search_in_row_groups_finds_the_very_clip_and_none_of_its_video(
        self, tmp_path: Path, dataset: Manifest
    ) -> None:
        url = f"{tmp_path}/clips"
        eyes = ExtractionConfig(extractor=None, frames=16, cpus=1, gpus=0)
        groups = _sample_groups(dataset, 10_000, 0)
        rows = np.array([3, 77, 149])
        asked = normalize_blocks(block_means(read_frames(url, dataset, rows)))
        assert len(groups) == 3
        found = find_nearest(asked, np.full(3, ""), url, dataset, groups, eyes)
        assert found.row.tolist() == rows.tolist()
        assert found.distance.max() == 0
        own = np.array([f"video-{row // 2}.mp4" for row in rows])
        others = find_nearest(asked, own, url, dataset, groups, eyes)
        assert (others.row // 2 != rows // 2).all()
        assert (others.distance > 0).all()

    def test_evaluation_of_two_models_is_the_same_again_and_kept_whole(
        self, tmp_path: Path, dataset: Manifest, write_dataset, tracking_uri: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        held_out = write_dataset(f"{tmp_path}/held-out", num_clips=40, shard_rows=40)
        url = checkpoint(tmp_path / "gan", f"{tmp_path}/clips", dataset.digest)
        one_stream = replace(MODEL, architecture="one_stream")
        pretrained.save(tmp_path / "one", one_stream, networks(one_stream))
        config = EvaluateConfig(
            data=f"{tmp_path}/held-out",
            checkpoint=[url, f"{tmp_path}/one"],
            sample_datasets=[f"{tmp_path}/clips"],
            out=f"{tmp_path}/out",
            num_clips=20,
            bootstrap_samples=4,
            extractor="pixels",
            reference="toys",
            tracking=TrackingConfig(uri=tracking_uri),
        )
        found = evaluate(config)
        assert [row.name for row in found.rows] == ["real, reference", "real, training", "clips", "gan, step 3", "one"]
        assert found.protocol["dataset_digest"] == held_out.digest
        gan, one = found.rows[3:]
        assert {metric_kind(name) for name in gan.metrics} - {metric_kind(name) for name in one.metrics} == {
            "mask-mean",
            "mask-decided",
            "mask-follows",
            "copies",
        }
        assert gan.metrics["fvd20_pixels-r32_toys_16f"].low > found.rows[1].metrics["fvd20_pixels-r32_toys_16f"].high
        assert "not searched for copies" in one.remark
        assert "20 of the reference's 20 videos are in the training set" in gan.remark
        capsys.readouterr()
        again = evaluate(config)
        assert to_json(again) == to_json(found)
        assert capsys.readouterr().out.count("statistics from the cache") == 3
        shown = format_table(found)
        for row in found.rows:
            assert row.name in shown
            assert all(name in shown for name in row.metrics)
        page = model_card(found, config)
        assert page.count("data:video/mp4") == 3  # samples of both, streams of one
        assert "Nearest training clips" in page
        log_evaluation(found, config, page)
        log_evaluation(again, config, page)
        self.check_runs(tracking_uri, found)

    def check_runs(self, uri: str, found: Evaluation) -> None:
        client = mlflow.MlflowClient(uri)
        logged = client.search_runs([client.get_experiment_by_name("evaluation").experiment_id])
        assert Counter(run.info.run_name for run in logged) == Counter(row.name for row in found.rows[1:])
        (run,) = (run for run in logged if run.info.run_name == "gan, step 3")
        value, low, high = found.rows[3].metrics["fvd20_pixels-r32_toys_16f"]
        assert run.data.metrics["fvd20_pixels-r32_toys_16f"] == value
        assert run.data.metrics["fvd20_pixels-r32_toys_16f/low"] == low
        assert run.data.metrics["fvd20_pixels-r32_toys_16f/high"] == high
        curve = client.get_metric_history(run.info.run_id, "spectrum20_r32_16f")
        assert {point.step: point.value for point in curve} == dict(enumerate(found.rows[3].spectrum, start=1))
        assert run.data.tags["training_dataset_hash"] == found.subjects[0].training.digest
        assert {f.path for f in client.list_artifacts(run.info.run_id)} == {"card.html", "result.json", "table.txt"}

    def test_a_model_that_draws_training_clips_is_found_out(
        self, tmp_path: Path, dataset: Manifest, monkeypatch: pytest.MonkeyPatch, tracking_uri: str, write_dataset
    ) -> None:
        write_dataset(f"{tmp_path}/held-out", num_clips=40, shard_rows=40, seed=1)
        url = checkpoint(tmp_path / "gan", f"{tmp_path}/clips", dataset.digest)
        config = EvaluateConfig(
            data=f"{tmp_path}/held-out",
            checkpoint=[url],
            out=f"{tmp_path}/out",
            num_clips=20,
            tracking=TrackingConfig(uri=tracking_uri),
        )
        learned = sample_reference_set(f"{tmp_path}/clips", dataset, 20, seed=5)
        seen = extract_real(learned, ExtractionConfig(extractor=None, frames=16, cpus=1, gpus=0), "")
        monkeypatch.setattr("cluster.evaluation.evaluate.extract_generated", lambda *_: seen)
        row = evaluate(config).rows[-1]
        (name,) = (name for name in row.metrics if metric_kind(name) == "copies")
        assert name == f"copies20_patterns8-r32_{dataset.digest[:8]}-150clips_16f"
        assert row.metrics[name].value == 1
        assert sorted(found for _, found, _ in row.copies) == learned.rows.tolist()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_clips": 1000}, "num_clips=1000 clips"),
        ({"num_frames": 32}, "num_frames=32 exceeds the 16"),
        ({"reference": "my clips"}, "reference must consist of letters"),
        ({"extractor": "/nowhere/i3d"}, "no file of I3D weights"),
        ({"checkpoint": ["/nowhere"]}, "no checkpoint at"),
    ],
)
def test_evaluation_says_what_cannot_work_before_it_begins(
    tmp_path: Path, dataset: Manifest, settings: dict, said: str
) -> None:
    assert read_manifest(f"{tmp_path}/clips") == dataset
    given = {
        "data": f"{tmp_path}/clips",
        "sample_datasets": [f"{tmp_path}/clips"],
        "out": f"{tmp_path}/out",
        "num_clips": 8,
    }
    with pytest.raises(InputError, match=said):
        evaluate(EvaluateConfig(**given | settings))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["future", "autoencoder"])
def test_evaluation_of_a_model_that_cannot_draw_from_noise_says_why(
    tmp_path: Path, dataset: Manifest, kind: str
) -> None:
    config = replace(MODEL, architecture=kind)
    pretrained.save(tmp_path / kind, config, make_networks(config))
    with pytest.raises(InputError, match={"future": "generates from images", "autoencoder": "without a mixture"}[kind]):
        evaluate(EvaluateConfig(data=f"{tmp_path}/clips", checkpoint=[f"{tmp_path}/{kind}"], num_clips=8))
    del dataset  # required only as a fixture
