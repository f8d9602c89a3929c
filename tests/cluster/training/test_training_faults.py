"""Training runs under kills, stops, hangs, storage and MLflow failures: final weights equal an undisturbed run's."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import mlflow
import psutil
import pytest
import torch
from ray.cluster_utils import Cluster
from s3_server import Faults, environment, failing_proxy, forget_connections, required_in_ci, s3_server
from safetensors.torch import load_file

from cluster.checkpoints.store import latest_checkpoint, list_committed, open_checkpoint
from cluster.storage.files import read_json

pytestmark = pytest.mark.slow  # each run starts its own Ray

NUM_KILLS = 10
KINDS = ("worker", "workers", "driver", "raylet")
PATIENCE_S = 600.0
STARTED: list[Job] = []
BEGUN = "training 'gan' from step"


@pytest.fixture(scope="module")
def clips(write_dataset: Callable[..., object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_dataset(str(folder), 60, shard_rows=20)
    return folder


class Job:
    """Process group of `jobs.train`, started as users do, and its output so far."""

    def __init__(self, clips: Path, scratch: Path, *argv: str, **variables: str) -> None:
        model = ["model.base_width=4", "model.num_frames=16", "model.size=32", "batch_size=8", "log_every=1"]
        common = [f"data={clips}", f"out={scratch}/runs", f"tracking.uri=sqlite:///{scratch}/mlflow.db", *model]
        self.log = scratch / "log.txt"
        self.earlier_output = self.output()
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jobs.train", *common, *argv],
                env=os.environ | variables,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.driver = psutil.Process(self.process.pid)
        self.family: set[psutil.Process] = {self.driver}
        STARTED.append(self)

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def starts(self) -> int:
        """Count the starts of the workers since this start of the job."""
        return self.output()[len(self.earlier_output) :].count(BEGUN)

    def step(self) -> int:
        """Return the step of the last progress line since the last start of the workers; 0 before the first."""
        steps = re.findall(r"step (\d+)/", self.output()[len(self.earlier_output) :].rpartition(BEGUN)[2])
        return int(steps[-1]) if steps else 0

    def reach(self, step: int, after: int) -> bool:
        """Wait for more than `after` starts of the workers and then for a step; return False if the job ends first."""
        return self.wait_until(lambda: self.starts() > after and self.step() >= step)

    def running(self) -> bool:
        if self.process.poll() is not None:
            return False
        try:
            self.family |= set(self.driver.children(recursive=True))
        except psutil.NoSuchProcess:
            return False
        return True

    def wait_until(self, reached: Callable[[], object]) -> bool:
        """Wait for a condition or the end of the job; return the condition. Fail the test after PATIENCE_S."""
        deadline = time.monotonic() + PATIENCE_S
        while self.running():
            if reached():
                return True
            assert time.monotonic() < deadline, f"the job hangs: {self.output()[-3000:]}"
            time.sleep(0.05)
        return bool(reached())

    def workers(self) -> list[psutil.Process]:
        return [p for p in self.family if "ray::RayTrainWorker" in command_of(p)]

    def raylets(self) -> list[psutil.Process]:
        return [p for p in self.family if os.path.basename(command_of(p).partition(" ")[0]) == "raylet"]

    def end(self) -> int:
        """Wait for the end of the job, kill its remaining processes and return its exit code."""
        self.wait_until(lambda: False)
        code = self.process.wait(30)
        self.clear()
        return code

    def clear(self) -> None:
        """Kill all processes of the job."""
        self.running()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)
        remaining = [p for p in self.family if p.pid != self.process.pid]
        kill(remaining)
        psutil.wait_procs(remaining, timeout=30)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Kill the jobs of a failed test."""
    yield
    while STARTED:
        STARTED.pop().clear()


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill(processes: list[psutil.Process]) -> None:
    """Send SIGKILL without waiting, which would take the driver's exit code from its parent."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def final_state(run: str | Path) -> dict[str, torch.Tensor]:
    """Load all tensors of the newest checkpoint: weights, buffers, moving average, and flat Adam moments."""
    url = latest_checkpoint(str(run))
    assert url
    tensors, moments = {}, {}
    for path in sorted(Path(url).rglob("*.safetensors")):
        if path.parent.name == "weights":
            tensors |= {f"{path.stem}.{key}": value for key, value in load_file(path).items()}
        else:
            moments[path.stem] = load_file(path)
    for name in ("generator", "discriminator"):
        parts = [moments[key] for key in sorted(moments) if key.startswith(name)]
        tensors |= {f"{name}.{key}": torch.cat([part[key] for part in parts]) for key in ("exp_avg", "exp_avg_sq")}
    return tensors


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [key for key in a if not torch.equal(a[key], b[key])]


@pytest.fixture(scope="module")
def calm(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, torch.Tensor]]:
    """Function that returns the final state of an undisturbed run with some settings."""
    states: dict[tuple[str, ...], dict[str, torch.Tensor]] = {}

    def state(*argv: str) -> dict[str, torch.Tensor]:
        if argv not in states:
            scratch = tmp_path_factory.mktemp("calm")
            job = Job(clips, scratch, *argv)
            assert job.end() == 0, job.output()[-3000:]
            states[argv] = final_state(scratch / "runs" / "gan")
        return states[argv]

    return state


# ---- kills -------------------------------------------------------------------------------------------------------


def test_training_killed_ten_times_ends_bit_for_bit_as_an_undisturbed_run(
    clips: Path, calm: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    argv = ("workers=2", "zero_stage=1", "steps=1500", "checkpoint_every=20", "sample_every=1000")
    expected = calm(*argv)
    rng, killed = random.Random(0), Counter[str]()
    kinds = [*KINDS, *KINDS, *rng.choices(KINDS, k=NUM_KILLS - 2 * len(KINDS))]
    rng.shuffle(kinds)
    targets = sorted(rng.sample(range(2, 1000), NUM_KILLS))  # lines reach the log seconds late
    job, begun = Job(clips, tmp_path, *argv), 0
    for kind, target in zip(kinds, targets, strict=True):
        while not job.reach(target, after=begun):
            assert job.end() != 0  # it failed because of the previous kill
            job, begun = Job(clips, tmp_path, *argv), 0
        begun = job.starts()
        victims = {
            "worker": job.workers()[:1],
            "workers": job.workers(),
            "driver": [job.driver],
            "raylet": job.raylets(),
        }[kind]
        assert victims
        kill(victims)
        killed[kind] += 1
        if kind in ("driver", "raylet"):
            assert job.end() != 0
            job, begun = Job(clips, tmp_path, *argv), 0
    while job.end() != 0:
        job = Job(clips, tmp_path, *argv)
    print(f"killed: {dict(killed)} at steps {targets}")
    assert killed.total() == NUM_KILLS
    assert differing(final_state(tmp_path / "runs" / "gan"), expected) == []


def test_training_resumes_from_the_previous_checkpoint_if_the_newest_is_damaged(
    clips: Path, calm: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    argv = ("workers=1", "checkpoint_every=4", "sample_every=1000")
    expected = calm(*argv, "steps=20")
    assert Job(clips, tmp_path, *argv, "steps=14").end() == 0
    run = tmp_path / "runs" / "gan"
    newest = Path(list_committed(str(run))[0])
    path = newest / "weights" / "generator.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    job = Job(clips, tmp_path, *argv, "steps=20")
    assert job.end() == 0
    assert f"{newest} is DAMAGED (weights/generator.safetensors differs from its hash)" in job.output()
    assert "training 'gan' from step 12 to 20" in job.output()
    assert differing(final_state(run), expected) == []


def test_training_fails_after_max_failures_and_can_be_continued(
    clips: Path, calm: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    argv = ("workers=1", "checkpoint_every=4", "sample_every=1000")
    job = Job(clips, tmp_path, *argv, "steps=100000", "checkpoint_every=100000", "max_failures=1")
    for begun in range(2):
        assert job.reach(2, after=begun)
        kill(job.workers())
    assert job.end() == 1
    assert job.starts() == 2
    assert (
        Job(clips, tmp_path, *argv, "steps=20").end() == 0
    )  # nothing remains of the failed run that would stop this one
    assert differing(final_state(tmp_path / "runs" / "gan"), calm(*argv, "steps=20")) == []


def test_training_with_a_hanging_worker_restarts_after_the_timeout(
    clips: Path, calm: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    argv = ("workers=2", "steps=200", "checkpoint_every=4", "sample_every=1000")
    expected = calm(*argv)
    job = Job(clips, tmp_path, *argv, "step_timeout_s=30")
    assert job.wait_until(lambda: job.step() >= 6 and len(job.workers()) == 2)
    job.workers()[0].suspend()
    assert job.end() == 0, job.output()[-3000:]
    assert job.starts() == 2
    assert differing(final_state(tmp_path / "runs" / "gan"), expected) == []


# ---- stop requests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_training_stopped_by_a_signal_saves_and_continues_from_that_step(
    clips: Path, calm: Callable[..., dict[str, torch.Tensor]], tmp_path: Path, number: signal.Signals
) -> None:
    argv = ("workers=1", "steps=400", "checkpoint_every=1000", "sample_every=1000")
    expected = calm(*argv)
    job = Job(clips, tmp_path, *argv)
    assert job.wait_until(lambda: job.step() >= 7)
    job.process.send_signal(number)
    assert job.end() == 130
    run = str(tmp_path / "runs" / "gan")
    checkpoint = open_checkpoint(run)
    assert 7 <= checkpoint.step < 400
    assert f"stopped and saved at step {checkpoint.step}" in job.output()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert client.get_run(checkpoint.mlflow_run_id).info.status == "KILLED"
    job = Job(clips, tmp_path, *argv)
    assert job.end() == 0
    assert f"training 'gan' from step {checkpoint.step} to 400" in job.output()
    assert differing(final_state(run), expected) == []
    assert client.get_run(checkpoint.mlflow_run_id).info.status == "FINISHED"


def test_training_saves_and_restarts_if_one_worker_receives_sigterm(
    clips: Path, calm: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    argv = ("workers=2", "steps=400", "checkpoint_every=1000", "sample_every=1000")
    expected = calm(*argv)
    job = Job(clips, tmp_path, *argv)
    assert job.reach(7, after=0)
    job.workers()[0].terminate()
    assert job.end() == 0, job.output()[-3000:]
    (saved,) = set(re.findall(r"a worker received SIGTERM: saved at step (\d+)", job.output()))
    assert f"{BEGUN} {saved} to 400" in job.output()
    state = final_state(tmp_path / "runs" / "gan")
    statistics = {key for key in state if "running" in key}  # averaged over the ranks once more
    assert set(differing(state, expected)) <= statistics
    assert max(float((state[key] - expected[key]).abs().max()) for key in statistics) < 1e-5


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


# ---- elastic cluster ---------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(ray_token: str) -> Iterator[Cluster]:
    """Cluster with a head without CPUs, for the driver and Ray's own actors."""
    assert os.environ["RAY_AUTH_TOKEN"] == ray_token
    ray_cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": free_port()})
    yield ray_cluster
    ray_cluster.shutdown()


def test_training_grows_with_a_new_node_and_shrinks_after_a_preemption_notice(
    clips: Path, cluster: Cluster, tmp_path: Path
) -> None:
    cluster.add_node(num_cpus=1)
    argv = ("workers=1-2", "zero_stage=1", "steps=100000", "elastic_check_interval_s=5", f"address={cluster.address}")
    job = Job(clips, tmp_path, *argv, "checkpoint_every=20", "sample_every=100000")
    assert job.wait_until(lambda: "on 1x cpu" in job.output() and job.step() >= 20), job.output()[-3000:]
    second = cluster.add_node(num_cpus=1)
    assert job.wait_until(lambda: "on 2x cpu" in job.output()), job.output()[-3000:]
    grown = int(re.findall(r"from step (\d+) to 100000 on 2x", job.output())[-1])
    assert grown >= 20
    assert job.wait_until(lambda: job.step() >= grown + 5)
    notice = [
        "drain-node",
        "--address",
        cluster.address,
        "--node-id",
        second.node_id,
        "--reason",
        "DRAIN_NODE_REASON_PREEMPTION",
    ]
    ray_command = Path(sys.executable).with_name("ray")
    subprocess.run(
        [ray_command, *notice, "--reason-message", "spot", "--deadline-remaining-seconds", "20"], check=True, timeout=60
    )
    assert job.wait_until(lambda: "saved, because a node is about to be preempted" in job.output()), job.output()[
        -3000:
    ]
    saved = int(re.findall(r"step (\d+): saved, because a node is about to be preempted", job.output())[-1])
    cluster.remove_node(second)
    assert job.wait_until(lambda: len(re.findall(r"on 1x cpu", job.output())) == 2), job.output()[-3000:]
    resumed = int(re.findall(r"from step (\d+) to 100000 on 1x", job.output())[-1])
    assert resumed >= saved
    job.process.send_signal(signal.SIGTERM)
    assert job.end() == 130
    assert open_checkpoint(str(tmp_path / "runs" / "gan")).step >= resumed


# ---- storage and MLflow ------------------------------------------------------------------------------------------


@pytest.mark.skipif(required_in_ci() is not None, reason=str(required_in_ci()))
def test_training_on_storage_that_fails_one_call_in_twenty_ends_as_on_a_disk(
    clips: Path,
    calm: Callable[..., dict[str, torch.Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv = ("workers=2", "zero_stage=1", "steps=24", "checkpoint_every=2", "sample_every=1000")
    expected = calm(*argv)
    faults = Faults(rate=0.05)
    with s3_server(tmp_path / "served", "runs") as endpoint, failing_proxy(endpoint, faults) as unsteady:
        job = Job(clips, tmp_path, *argv, "out=s3://runs/train", **environment(unsteady))
        assert job.end() == 0, job.output()[-3000:]
        for name, value in environment(endpoint).items():
            monkeypatch.setenv(name, value)
        forget_connections()
        assert read_json("s3://runs/train/gan/run.json")
        fsspec.filesystem("s3").get("runs/train/gan", str(tmp_path / "fetched"), recursive=True)
    assert sum(faults.done.values()) - faults.done["passed"] > 5, faults.done
    print(f"calls: {dict(faults.done)}")
    assert differing(final_state(tmp_path / "fetched"), expected) == []


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[None]:
    """Run a tracking server during the block, and kill it at the end."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = [f"--backend-store-uri=sqlite:///{folder}/server.db", f"--artifacts-destination={folder}/artifacts"]
    with (folder / "server.log").open("ab") as out:
        server = psutil.Popen([*command, *store], stdout=out, stderr=out, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, (folder / "server.log").read_text()[-2000:]
                time.sleep(0.2)
        yield
    finally:
        kill([*server.children(recursive=True), server])


def test_training_continues_while_mlflow_is_down_and_logs_everything_later(clips: Path, tmp_path: Path) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    argv = ("workers=1", "steps=1500", "checkpoint_every=500", "sample_every=500", f"tracking.uri={uri}")
    with mlflow_server(tmp_path, port):
        job = Job(clips, tmp_path, *argv)
        assert job.wait_until(lambda: job.step() >= 20)
    stopped_at = job.step()
    assert job.wait_until(lambda: "MLflow does not answer" in job.output() and job.step() >= stopped_at + 50)
    with mlflow_server(tmp_path, port):
        assert job.end() == 0, job.output()[-3000:]
        assert "MLflow answers again" in job.output()
        client = mlflow.MlflowClient(uri)
        (run,) = client.search_runs([client.get_experiment_by_name("gan").experiment_id])
        assert run.info.status == "FINISHED"
        history = client.get_metric_history(run.info.run_id, "loss/generator")
        assert sorted(point.step for point in history) == list(range(1, 1501))
