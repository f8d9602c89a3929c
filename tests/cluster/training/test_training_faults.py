"""Whole runs that are killed, stopped, hung, or short of storage or MLflow: they end where an undisturbed one ends."""

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

pytestmark = pytest.mark.slow  # each run starts a Ray of its own

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
    """`jobs.train` as users start it, in a process group of its own, and what it has said so far."""

    def __init__(self, clips: Path, scratch: Path, *words: str, **variables: str) -> None:
        model = ["model.base_width=4", "model.num_frames=16", "model.size=32", "batch_size=8", "log_every=1"]
        common = [f"data={clips}", f"out={scratch}/runs", f"tracking.uri=sqlite:///{scratch}/mlflow.db", *model]
        self.log = scratch / "log.txt"
        self.said_before = self.said()
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jobs.train", *common, *words],
                env=os.environ | variables,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.driver = psutil.Process(self.process.pid)
        self.family: set[psutil.Process] = {self.driver}
        STARTED.append(self)

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def starts(self) -> int:
        """How often the workers of this start of the job have begun."""
        return self.said()[len(self.said_before) :].count(BEGUN)

    def step(self) -> int:
        """The last step that a progress line has told since they last began."""
        found = re.findall(r"step (\d+)/", self.said()[len(self.said_before) :].rpartition(BEGUN)[2])
        return int(found[-1]) if found else 0

    def reach(self, step: int, after: int) -> bool:
        """Wait until they have begun more than `after` times and reached a step; False if the job has ended first."""
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
        """Wait for something, or the job's end; whether it came. Fails the test after a long time."""
        deadline = time.monotonic() + PATIENCE_S
        while self.running():
            if reached():
                return True
            assert time.monotonic() < deadline, f"the job hangs: {self.said()[-3000:]}"
            time.sleep(0.05)
        return bool(reached())

    def workers(self) -> list[psutil.Process]:
        return [p for p in self.family if "ray::RayTrainWorker" in command_of(p)]

    def raylets(self) -> list[psutil.Process]:
        return [p for p in self.family if os.path.basename(command_of(p).partition(" ")[0]) == "raylet"]

    def end(self) -> int:
        """Wait for the job's end, then end what it left behind, all its own; the exit code."""
        self.wait_until(lambda: False)
        code = self.process.wait(30)
        self.clear()
        return code

    def clear(self) -> None:
        """End what is left of the job."""
        self.running()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)
        left = [p for p in self.family if p.pid != self.process.pid]
        kill(left)
        psutil.wait_procs(left, timeout=30)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """A test that fails leaves no job behind."""
    yield
    while STARTED:
        STARTED.pop().clear()


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill(processes: list[psutil.Process]) -> None:
    """Send SIGKILL. Waits for none: that would take the driver's exit code away from whoever started it."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def final_state(run: str | Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint: weights, buffers, moving average, and Adam's moments as one vector."""
    url = latest_checkpoint(str(run))
    assert url
    found, moments = {}, {}
    for path in sorted(Path(url).rglob("*.safetensors")):
        if path.parent.name == "weights":
            found |= {f"{path.stem}.{key}": value for key, value in load_file(path).items()}
        else:
            moments[path.stem] = load_file(path)
    for name in ("generator", "discriminator"):
        parts = [moments[key] for key in sorted(moments) if key.startswith(name)]
        found |= {f"{name}.{key}": torch.cat([part[key] for part in parts]) for key in ("exp_avg", "exp_avg_sq")}
    return found


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [key for key in a if not torch.equal(a[key], b[key])]


@pytest.fixture(scope="module")
def calm(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, torch.Tensor]]:
    """The final state of an undisturbed run of some settings."""
    known: dict[tuple[str, ...], dict[str, torch.Tensor]] = {}

    def state(*words: str) -> dict[str, torch.Tensor]:
        if words not in known:
            scratch = tmp_path_factory.mktemp("calm")
            job = Job(clips, scratch, *words)
            assert job.end() == 0, job.said()[-3000:]
            known[words] = final_state(scratch / "runs" / "gan")
        return known[words]

    return state


# ---- kills -------------------------------------------------------------------------------------------------------


def test_training_killed_ten_times_ends_bit_for_bit_where_an_undisturbed_run_ends(
    clips: Path, calm: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    words = ("workers=2", "zero_stage=1", "steps=1500", "checkpoint_every=20", "sample_every=1000")
    expected = calm(*words)
    rng, killed = random.Random(0), Counter[str]()
    kinds = [*KINDS, *KINDS, *rng.choices(KINDS, k=NUM_KILLS - 2 * len(KINDS))]
    rng.shuffle(kinds)
    targets = sorted(rng.sample(range(2, 1000), NUM_KILLS))  # lines reach the log seconds late
    job, begun = Job(clips, tmp_path, *words), 0
    for kind, target in zip(kinds, targets, strict=True):
        while not job.reach(target, after=begun):
            assert job.end() != 0  # it fell over what was killed before
            job, begun = Job(clips, tmp_path, *words), 0
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
            job, begun = Job(clips, tmp_path, *words), 0
    while job.end() != 0:
        job = Job(clips, tmp_path, *words)
    print(f"killed: {dict(killed)} at steps {targets}")
    assert killed.total() == NUM_KILLS
    assert differing(final_state(tmp_path / "runs" / "gan"), expected) == []


def test_training_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before_and_says_so(
    clips: Path, calm: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    words = ("workers=1", "checkpoint_every=4", "sample_every=1000")
    expected = calm(*words, "steps=20")
    assert Job(clips, tmp_path, *words, "steps=14").end() == 0
    run = tmp_path / "runs" / "gan"
    newest = Path(list_committed(str(run))[0])
    path = newest / "weights" / "generator.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    job = Job(clips, tmp_path, *words, "steps=20")
    assert job.end() == 0
    assert f"{newest} is DAMAGED (weights/generator.safetensors is not what was written)" in job.said()
    assert "training 'gan' from step 12 to 20" in job.said()
    assert differing(final_state(run), expected) == []


def test_training_whose_workers_keep_failing_gives_up_and_goes_on_later(
    clips: Path, calm: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    words = ("workers=1", "checkpoint_every=4", "sample_every=1000")
    job = Job(clips, tmp_path, *words, "steps=100000", "checkpoint_every=100000", "max_failures=1")
    for begun in range(2):
        assert job.reach(2, after=begun)
        kill(job.workers())
    assert job.end() == 1
    assert job.starts() == 2
    assert Job(clips, tmp_path, *words, "steps=20").end() == 0  # nothing of the failed run is in the way
    assert differing(final_state(tmp_path / "runs" / "gan"), calm(*words, "steps=20")) == []


def test_training_with_a_worker_that_hangs_is_started_again_within_the_stated_time(
    clips: Path, calm: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    words = ("workers=2", "steps=200", "checkpoint_every=4", "sample_every=1000")
    expected = calm(*words)
    job = Job(clips, tmp_path, *words, "step_timeout_s=30")
    assert job.wait_until(lambda: job.step() >= 6 and len(job.workers()) == 2)
    job.workers()[0].suspend()
    assert job.end() == 0, job.said()[-3000:]
    assert job.starts() == 2
    assert differing(final_state(tmp_path / "runs" / "gan"), expected) == []


# ---- told to stop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_training_told_to_stop_saves_at_that_step_and_goes_on_from_it(
    clips: Path, calm: Callable[..., dict[str, torch.Tensor]], tmp_path: Path, number: signal.Signals
) -> None:
    words = ("workers=1", "steps=400", "checkpoint_every=1000", "sample_every=1000")
    expected = calm(*words)
    job = Job(clips, tmp_path, *words)
    assert job.wait_until(lambda: job.step() >= 7)
    job.process.send_signal(number)
    assert job.end() == 130
    run = str(tmp_path / "runs" / "gan")
    found = open_checkpoint(run)
    assert 7 <= found.step < 400
    assert f"stopped at step {found.step}, which is saved" in job.said()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert client.get_run(found.mlflow_run_id).info.status == "KILLED"
    job = Job(clips, tmp_path, *words)
    assert job.end() == 0
    assert f"training 'gan' from step {found.step} to 400" in job.said()
    assert differing(final_state(run), expected) == []
    assert client.get_run(found.mlflow_run_id).info.status == "FINISHED"


def test_training_one_of_whose_workers_is_sent_sigterm_saves_and_starts_again_from_there(
    clips: Path, calm: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    words = ("workers=2", "steps=400", "checkpoint_every=1000", "sample_every=1000")
    expected = calm(*words)
    job = Job(clips, tmp_path, *words)
    assert job.reach(7, after=0)
    job.workers()[0].terminate()
    assert job.end() == 0, job.said()[-3000:]
    (saved,) = set(re.findall(r"a worker was sent SIGTERM: saved at step (\d+)", job.said()))
    assert f"{BEGUN} {saved} to 400" in job.said()
    found = final_state(tmp_path / "runs" / "gan")
    statistics = {key for key in found if "running" in key}  # their mean over the ranks was taken once more
    assert set(differing(found, expected)) <= statistics
    assert max(float((found[key] - expected[key]).abs().max()) for key in statistics) < 1e-5


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


# ---- a cluster whose nodes come and go ---------------------------------------------------------------------------


@pytest.fixture
def cluster(ray_token: str) -> Iterator[Cluster]:
    """A head without CPUs, for the driver and Ray's own actors."""
    assert os.environ["RAY_AUTH_TOKEN"] == ray_token
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": free_port()})
    yield found
    found.shutdown()


def test_training_grows_with_a_new_node_and_shrinks_when_one_is_taken_away_after_notice(
    clips: Path, cluster: Cluster, tmp_path: Path
) -> None:
    cluster.add_node(num_cpus=1)
    words = ("workers=1-2", "zero_stage=1", "steps=100000", "elastic_check_interval_s=5", f"address={cluster.address}")
    job = Job(clips, tmp_path, *words, "checkpoint_every=20", "sample_every=100000")
    assert job.wait_until(lambda: "on 1x cpu" in job.said() and job.step() >= 20), job.said()[-3000:]
    second = cluster.add_node(num_cpus=1)
    assert job.wait_until(lambda: "on 2x cpu" in job.said()), job.said()[-3000:]
    grown = int(re.findall(r"from step (\d+) to 100000 on 2x", job.said())[-1])
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
    assert job.wait_until(lambda: "a node is about to be taken away; saved" in job.said()), job.said()[-3000:]
    saved = int(re.findall(r"step (\d+): a node is about to be taken away", job.said())[-1])
    cluster.remove_node(second)
    assert job.wait_until(lambda: len(re.findall(r"on 1x cpu", job.said())) == 2), job.said()[-3000:]
    resumed = int(re.findall(r"from step (\d+) to 100000 on 1x", job.said())[-1])
    assert resumed >= saved
    job.process.send_signal(signal.SIGTERM)
    assert job.end() == 130
    assert open_checkpoint(str(tmp_path / "runs" / "gan")).step >= resumed


# ---- what is around it -------------------------------------------------------------------------------------------


@pytest.mark.skipif(required_in_ci() is not None, reason=str(required_in_ci()))
def test_training_on_a_store_that_fails_one_call_in_twenty_ends_as_on_a_disk(
    clips: Path,
    calm: Callable[..., dict[str, torch.Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("workers=2", "zero_stage=1", "steps=24", "checkpoint_every=2", "sample_every=1000")
    expected = calm(*words)
    faults = Faults(rate=0.05)
    with s3_server(tmp_path / "served", "runs") as endpoint, failing_proxy(endpoint, faults) as unsteady:
        job = Job(clips, tmp_path, *words, "out=s3://runs/train", **environment(unsteady))
        assert job.end() == 0, job.said()[-3000:]
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
    """A tracking server for the length of the block, which ends as if it had crashed."""
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


def test_training_goes_on_while_mlflow_is_away_and_tells_it_all_later(clips: Path, tmp_path: Path) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    words = ("workers=1", "steps=1500", "checkpoint_every=500", "sample_every=500", f"tracking.uri={uri}")
    with mlflow_server(tmp_path, port):
        job = Job(clips, tmp_path, *words)
        assert job.wait_until(lambda: job.step() >= 20)
    gone = job.step()
    assert job.wait_until(lambda: "MLflow does not answer" in job.said() and job.step() >= gone + 50)
    with mlflow_server(tmp_path, port):
        assert job.end() == 0, job.said()[-3000:]
        assert "MLflow answers again" in job.said()
        client = mlflow.MlflowClient(uri)
        (run,) = client.search_runs([client.get_experiment_by_name("gan").experiment_id])
        assert run.info.status == "FINISHED"
        history = client.get_metric_history(run.info.run_id, "loss/generator")
        assert sorted(point.step for point in history) == list(range(1, 1501))
