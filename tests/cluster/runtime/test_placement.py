"""Placement of work by node labels, on a Ray cluster of three nodes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from cluster.runtime import placement
from vgan.errors import InputError
from vgan.synthetic import draw_clip
from vgan.video.encode import write_mp4

LABELS = {placement.DECODE: "ray-subcluster=data", placement.TRAIN: "scene-role=train"}


def test_labels_are_none_if_the_environment_variables_are_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(placement.DECODE, raising=False)
    monkeypatch.setenv(placement.TRAIN, " ")
    assert placement.decode_labels() is None
    assert placement.train_labels() is None


def test_labels_have_the_format_of_ray_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(placement.DECODE, "ray-subcluster=data, example.com/disk=nvme")
    monkeypatch.setenv(placement.TRAIN, "scene-role=train")
    assert placement.decode_labels() == {"ray-subcluster": "data", "example.com/disk": "nvme"}
    assert placement.train_labels() == {"scene-role": "train"}


@pytest.mark.parametrize("text", ["data", "a=b,c", "a==b", "=b", "a=", "a=b;c=d"])
def test_malformed_labels_are_bad_input(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(placement.DECODE, text)
    with pytest.raises(InputError, match=placement.DECODE):
        placement.decode_labels()


@pytest.fixture(scope="module")
def nodes(ray_token: str) -> Iterator[dict[str, str]]:
    """Address and node ids of a Ray cluster as in the manifests; each worker node has resources for all the work."""
    assert os.environ["RAY_AUTH_TOKEN"] == ray_token
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": port})
    decode = cluster.add_node(num_cpus=2, labels={"ray-subcluster": "data"})
    train = cluster.add_node(num_cpus=2, labels={"scene-role": "train"})
    yield {"address": cluster.address, "decode": decode.node_id, "train": train.node_id}
    cluster.shutdown()


def run_script(text: str, *words: str) -> list[str]:
    """Run a driver in a new process and parse the JSON it prints after FOUND; the first word is Ray's address."""
    command = [sys.executable, "-c", text, *words]
    address = {"RAY_ADDRESS": words[0]}  # else Ray's state API queries the Ray that was started last on this machine
    result = subprocess.run(
        command, env=os.environ | LABELS | address, capture_output=True, text=True, timeout=900, check=False
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("FOUND ")]  # among workers' lines
    return json.loads(line.removeprefix("FOUND "))


PREPARE = """
import json, sys, time
import ray
from ray.util.state import list_tasks
from cluster.prepare.pipeline import prepare
from cluster.prepare.status import verify
from cluster.prepare.packing import Packing
from cluster.runtime.ray_session import ray_session
from cluster.sources.manifest import list_folder
from vgan.video.config import ClipSpec, DecodeConfig, FilterConfig, StabilizeConfig, VideoConfig

address, videos, out = sys.argv[1:]
video = VideoConfig(
    clip=ClipSpec(num_frames=16, size=32, stride=4), decode=DecodeConfig(size=96),
    stabilize=StabilizeConfig(size=96), filters=FilterConfig(disabled=["near_duplicate"]),
)
with ray_session(address):
    prepare(list_folder(videos)[0], out, video, Packing(shard_mb=1))
    assert verify(out) == []
    work = ("process_unit_or_error", "write_shard", "check_shard")
    for _ in range(60):  # nodes report their tasks about every second
        tasks = {(name, t.node_id) for t in list_tasks(limit=1000, detail=True) for name in work if name in t.name}
        if {name for name, _ in tasks} == set(work):
            break
        time.sleep(1)
    print("FOUND", json.dumps(sorted(tasks)))
"""


@pytest.mark.slow
def test_prepare_runs_on_decode_nodes_only(nodes: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for kind in ("Spin", "Bounce", "Grow"):
        write_mp4(draw_clip(kind, num_frames=56, size=(96, 128)).frames, tmp_path / "videos" / f"{kind}.mp4", 25.0)
    tasks = run_script(PREPARE, nodes["address"], str(tmp_path / "videos"), str(tmp_path / "clips"))
    assert {tuple(row) for row in tasks} == {
        (name, nodes["decode"]) for name in ("check_shard", "process_unit_or_error", "write_shard")
    }


TRAIN = """
import json, sys
import ray
from ray.util.state import list_actors
from cluster.runtime.ray_session import ray_session
from cluster.training.trainer import TrainConfig, fit
from cluster.observability.mlflow_tracker import TrackingConfig
from vgan.models.config import ModelConfig

address, data, out, workers = sys.argv[1:]
config = TrainConfig(
    data=data, out=out, steps=2, batch_size=4, workers=workers, address=address,
    model=ModelConfig(base_width=4, num_frames=16, size=32), tracking=TrackingConfig(uri=f"sqlite:///{out}/mlflow.db"),
)
with ray_session(address):
    fit(config)
    actors = list_actors(limit=1000, detail=True)
    print("FOUND", json.dumps(sorted({a.node_id for a in actors if a.class_name == "RayTrainWorker"})))
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["2", "1-2"])
def test_training_runs_on_training_nodes_only(
    nodes: dict[str, str], write_dataset: object, tmp_path: Path, workers: str
) -> None:
    write_dataset(str(tmp_path / "clips"), 12)  # type: ignore[operator]
    (tmp_path / "runs").mkdir()
    worker_nodes = run_script(TRAIN, nodes["address"], str(tmp_path / "clips"), str(tmp_path / "runs"), workers)
    assert worker_nodes == [nodes["train"]]


SWEEP = """
import json, sys
import ray
from cluster import sweep
from cluster.transfer.sweep_run import Child
from cluster.runtime.ray_session import ray_session

def node_id(*_, **__):
    return ray.get_runtime_context().get_node_id()

sweep.run_child = sweep.run_child_on_workers = node_id
with ray_session(sys.argv[1]):
    configs = [sweep.SweepConfig(ucf101="x"), sweep.SweepConfig(ucf101="x", workers=2)]
    tasks = [sweep._launch(c, Child(1, "random", 1.0, 0), None, None, "out") for c in configs for _ in range(3)]
    print("FOUND", json.dumps(sorted(set(ray.get(tasks)))))
"""


@pytest.mark.slow
def test_runs_of_a_sweep_run_on_training_nodes_only(nodes: dict[str, str]) -> None:
    assert run_script(SWEEP, nodes["address"]) == [nodes["train"]]
