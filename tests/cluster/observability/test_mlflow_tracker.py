"""MLflow runs in a database per test: continuation, links, final status, and unreachable servers."""

from __future__ import annotations

import json
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import mlflow
import numpy as np
import pytest
import torch
from mlflow.entities import Metric
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from cluster.observability.mlflow_queue import MlflowQueue
from cluster.observability.mlflow_tracker import Run, Tracker
from cluster.observability.system_metrics import installed_packages, system_metrics
from vgan.errors import InputError


@pytest.fixture
def tracker(tracking_uri: str) -> Tracker:
    return Tracker(tracking_uri, "gan")


def start(tracker: Tracker, key: str = "gan-1", parent: str = "", **params: object) -> Run:
    return tracker.start(key, name="gan", params=params, tags={"dataset_hash": "d" * 64}, parent=parent)


def stored(run: Run) -> mlflow.entities.Run:
    """Read the run with a new client."""
    return mlflow.MlflowClient(run.tracker.uri).get_run(run.id)


def artifacts(run: Run, folder: str | None = None) -> list[str]:
    return [f.path for f in mlflow.MlflowClient(run.tracker.uri).list_artifacts(run.id, folder)]


def test_start_with_a_known_key_continues_the_run_and_keeps_its_settings(tracker: Tracker) -> None:
    first = start(tracker, seed=0, steps=10)
    first.metrics({"loss": 1.0}, step=10)
    first.finish("FAILED")
    again = start(tracker, seed=0, steps=20)
    assert again.id == first.id
    again.metrics({"loss": 0.5}, step=20)
    record = stored(again)
    assert record.info.status == "RUNNING"
    assert record.data.params == {"seed": "0", "steps": "10"}
    history = tracker.client.get_metric_history(again.id, "loss")
    assert [(m.step, m.value) for m in history] == [(10, 1.0), (20, 0.5)]


def test_start_with_another_key_or_experiment_is_another_run(tracker: Tracker, tracking_uri: str) -> None:
    runs = [start(tracker), start(tracker, key="gan-2"), start(Tracker(tracking_uri, "transfer"))]
    assert len({run.id for run in runs}) == 3
    assert stored(runs[0]).data.tags["dataset_hash"] == "d" * 64
    assert stored(runs[0]).info.run_name == "gan"


def test_start_with_a_parent_links_the_child_as_the_ui_expects(tracker: Tracker) -> None:
    parent, other = start(tracker), start(tracker, key="other")
    children = [start(tracker, key=f"child-{n}", parent=parent.id) for n in range(3)]
    start(tracker, key="child-of-other", parent=other.id)
    query = f"tags.`mlflow.parentRunId` = '{parent.id}'"
    linked = tracker.client.search_runs([tracker.experiment_id()], query)
    assert {run.info.run_id for run in linked} == {child.id for child in children}


@pytest.mark.parametrize("url", ["s3://bucket/clips", '/data/a "b" \\ c'])
def test_dataset_is_logged_as_input_with_its_full_digest(tracker: Tracker, url: str) -> None:
    run = start(tracker)
    digest = "0123456789abcdef" * 4
    run.dataset(name="clips", digest=digest, url=url, context="training")
    (logged,) = stored(run).inputs.dataset_inputs
    assert (logged.dataset.name, logged.dataset.digest) == ("clips", digest[:36])
    assert json.loads(logged.dataset.source)["uri"] == url
    assert {tag.key: tag.value for tag in logged.tags} == {"mlflow.data.context": "training", "dataset_hash": digest}


def test_ending_sets_the_status_by_the_end_of_the_block(tracker: Tracker) -> None:
    def fail(run: Run, error: BaseException) -> None:
        with run.run_context():
            raise error

    run = start(tracker, key="fine")
    with run.run_context():
        assert stored(run).info.status == "RUNNING"
    assert stored(run).info.status == "FINISHED"
    for error, status in ((RuntimeError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED")):
        run = start(tracker, key=status)
        with pytest.raises(type(error)):
            fail(run, error)
        assert stored(run).info.status == status


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_finished_is_true_only_for_the_status_finished(tracker: Tracker, status: str) -> None:
    assert not tracker.is_finished("gan-1")
    run = start(tracker)
    assert not tracker.is_finished("gan-1")
    run.finish(status)
    assert tracker.is_finished("gan-1") == (status == "FINISHED")


def test_curve_longer_than_one_request_keeps_every_point(tracker: Tracker) -> None:
    run = start(tracker)
    run.log_series("loss/finetune", [1 / n for n in range(1, 1203)])
    history = tracker.client.get_metric_history(run.id, "loss/finetune")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [(n, 1 / n) for n in range(1, 1203)]


def test_start_takes_long_values(tracker: Tracker) -> None:
    run = start(tracker, **{f"key{n}": "x" * 7000 for n in range(3)})
    assert {len(v) for v in stored(run).data.params.values()} == {6000}


def test_artifacts_land_beside_the_database(tracker: Tracker, tmp_path: Path) -> None:
    run = start(tracker)
    run.text("a\n", "subset.txt")
    figure, _ = plt.subplots()
    run.figure(figure, "figures/curve.png")
    plt.close(figure)
    run.image(np.zeros((8, 8, 3), np.uint8), "samples", step=20)
    assert {"subset.txt", "figures", "images"} <= set(artifacts(run))
    assert artifacts(run, "figures") == ["figures/curve.png"]
    (local,) = (tmp_path / "mlartifacts").rglob("subset.txt")
    assert local.read_text() == "a\n"


def test_tracker_sent_to_a_worker_writes_to_the_same_run(tracker: Tracker) -> None:
    run = start(tracker)
    copy = pickle.loads(pickle.dumps(tracker))
    Run(copy, run.id).metrics({"loss/generator": 0.7}, step=3)
    assert stored(run).data.metrics == {"loss/generator": 0.7}
    assert start(copy).id == run.id


def test_tracker_without_a_uri_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert Tracker("", "gan").uri == "http://tracking:5000"
    assert Tracker("sqlite:////tmp/x.db", "gan").uri == "sqlite:////tmp/x.db"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)
    assert Tracker("", "gan").uri == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nosuch://server"])
def test_tracker_that_cannot_be_reached_is_bad_input(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=rf"tracking\.uri='{uri}'"):
        Tracker(uri, "gan").experiment_id()


# ---- unreachable server ------------------------------------------------------------------------------------------


def failing(run: Run, monkeypatch: pytest.MonkeyPatch, *faults: Exception) -> list[Exception]:
    """Make the next calls of the run's client raise `faults`; return the list of those not yet raised."""
    remaining, original = list(faults), run.client.log_batch

    def log_batch(*args: Any, **kwargs: Any) -> None:
        if remaining:
            raise remaining.pop(0)
        original(*args, **kwargs)

    monkeypatch.setattr("cluster.observability.mlflow_queue.RETRY_S", 0.01)
    monkeypatch.setattr(run.client, "log_batch", log_batch)
    return remaining


def test_outbox_queues_entries_of_an_unreachable_server_and_sends_them_in_order(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = start(tracker)
    remaining = failing(run, monkeypatch, mlflow.MlflowException("no connection"), OSError("reset"), OSError("reset"))
    outbox = MlflowQueue(run)
    for step in (1, 2, 3):
        outbox.metrics({"loss": 1 / step}, step)
    outbox.set_tags(warned="yes")
    outbox.close()
    assert not remaining
    history = tracker.client.get_metric_history(run.id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert stored(run).data.tags["warned"] == "yes"
    assert caplog.text.count("MLflow does not answer") == caplog.text.count("MLflow answers again") == 1


def test_outbox_batches_metrics_and_logs_dropped_entries(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cluster.observability.mlflow_queue.MAX_ENTRIES", 3)
    run = start(tracker)
    started, may_continue, calls, original = threading.Event(), threading.Event(), list[int](), run.client.log_batch

    def log_batch(run_id: str, metrics: list[Metric]) -> None:
        started.set()
        assert may_continue.wait(30)
        calls.append(len(metrics))
        original(run_id, metrics=metrics)

    monkeypatch.setattr(run.client, "log_batch", log_batch)
    outbox = MlflowQueue(run)
    for step in range(1, 1701):  # entries: the first, blocked at the server; 500, 500, 500, 199; two tags
        outbox.metrics({"loss": 1 / step}, step)
        assert started.wait(30)
        if step in (10, 600):
            outbox.set_tags(**{f"step{step}": "set"})  # a tag in between does not end a batch of metrics
    assert "the oldest entries of the run are lost" in caplog.text
    may_continue.set()
    outbox.close()
    assert sorted(calls) == [1, 199, 500]
    logged_steps = [m.step for m in tracker.client.get_metric_history(run.id, "loss")]
    assert sorted(logged_steps) == [1, *range(1002, 1701)]
    assert "step600" in stored(run).data.tags


def test_outbox_drops_refused_entries_and_continues(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = start(tracker)
    refused = mlflow.MlflowException("bad name", error_code=INVALID_PARAMETER_VALUE)
    remaining = failing(run, monkeypatch, refused)
    outbox = MlflowQueue(run)
    outbox.metrics({"loss": 1.0}, 1)
    outbox.metrics({"loss": 0.5}, 2)
    outbox.close()
    assert not remaining
    assert "MLflow refuses an entry: " in caplog.text
    assert [m.step for m in tracker.client.get_metric_history(run.id, "loss")] == [2]


def test_outbox_waits_for_a_slow_server_while_it_accepts_entries(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.observability.mlflow_queue.MAX_POINTS", 1)  # one value per entry
    run = start(tracker)
    original = run.client.log_batch

    def slow(*args: Any, **kwargs: Any) -> None:
        time.sleep(0.05)
        original(*args, **kwargs)

    monkeypatch.setattr(run.client, "log_batch", slow)
    outbox = MlflowQueue(run)
    for step in range(40):
        outbox.metrics({"loss": 1.0}, step)
    outbox.close(patience_s=0.5)
    assert len(tracker.client.get_metric_history(run.id, "loss")) == 40


def test_outbox_gives_up_on_an_unreachable_server_and_logs_the_loss(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = start(tracker)
    failing(run, monkeypatch, *[OSError("away")] * 100_000)
    outbox = MlflowQueue(run)
    for step in (1, 2):
        outbox.metrics({"loss": 1.0}, step)
    outbox.close(patience_s=0.2)
    assert "2 entries of the run are lost" in caplog.text


def test_finish_without_a_server_logs_a_warning_and_does_not_raise(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = start(tracker)

    def fail(*_: object) -> None:
        raise mlflow.MlflowException("no connection")

    monkeypatch.setattr(run.client, "set_terminated", fail)
    with run.run_context():
        pass
    assert "MLflow did not record the status FINISHED of the ended run: no connection" in caplog.text


def test_system_metrics_and_environment_are_of_this_process() -> None:
    usage = system_metrics()
    assert 0.05 < usage["system/process_memory_gb"] < 100
    assert 0 < usage["system/memory_percent"] <= 100
    assert f"torch=={torch.__version__}\n" in installed_packages()
