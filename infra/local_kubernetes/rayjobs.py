"""RayJobs of the guide's step 6: each runs to its end; nodes are added, removed and killed meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from infra.local_kubernetes.http_probe import http, page
from infra.local_kubernetes.kuberay_operator import (
    DASHBOARD,
    GCS,
    METRICS,
    RayNodes,
    auth_environment,
    job_status,
    last_lines,
    ray_nodes,
    submitter,
    wait_until,
)
from infra.local_kubernetes.manifests import Manifest
from infra.local_kubernetes.pods import Kubelet, Pod, PodFailedError
from infra.local_kubernetes.step_log import StepLog

# Settings appended to the entrypoints so that the jobs take minutes.
OVERRIDES = {
    "prepare": ["clip.stride=8"],
    "train": ["steps=24", "checkpoint_every=4", "sample_every=24", "batch_size=8", "model.base_width=4"],
    "sweep": ["initializations=[vgan,random]", "fractions=[0.5,1]", "seeds=0", "finetune.iterations=4"],
}
NUM_VIDEOS = 60  # of the user: enough that some are not yet processed when the added node of `prepare` has ended


def bucket_folder(cluster: Kubelet) -> Path:
    """Return the folder that the S3 store serves as its bucket."""
    return cluster.claims / "s3-0-data/scene"


def prepare(cluster: Kubelet, steps: StepLog) -> None:
    """Run the RayJob `prepare`, add a decode node and remove it, and check access control and the dataset."""
    job = cluster.namespace.named("RayJob", "prepare")
    with ExitStack() as stack:
        with steps.step("prepare: head and nodes"):
            nodes = stack.enter_context(ray_nodes(cluster, "prepare-a", job["spec"]["rayClusterSpec"]))
        with steps.step("prepare: submitted"):
            client = stack.enter_context(submitter(nodes, job, "prepare-a1", OVERRIDES["prepare"]))
            wait_until("the job prints its settings", lambda: "settings:" in client.text(), alive=[nodes.head, client])
        with steps.step("access control: token and password") as notes:
            notes += check_access(nodes, client)
        with steps.step("prepare: a decode node joins, works and leaves") as notes:
            pod = nodes.add("cpu-decode")
            wait_until("the new node is ready", lambda: "Ray runtime started" in pod.text(), alive=[pod, client])
            wait_until("the new node has committed a video", lambda: num_committed(pod), alive=[pod, client])
            joined_at, first = time.time(), num_committed(pod)
            wait_until("it has committed six more", lambda: num_committed(pod) >= first + 6, alive=[pod, client])
            stopped_at, num = time.time(), num_committed(pod)
            notes.append(f"committed {num} videos, ended {pod.stop():.0f} s after SIGTERM")
        wait_for_job(steps, "prepare", nodes, client, "prepare-a1")
        with steps.step("prepare: its dataset") as notes:
            manifest = json.loads((bucket_folder(cluster) / "clips/manifest.json").read_text())
            counts = manifest["counts"]
            if counts["sources"] != NUM_VIDEOS or counts["sources"] != counts["accepted"] + counts["rejected"]:
                raise PodFailedError(f"{NUM_VIDEOS} videos were the input, and the manifest counts {counts}")
            notes.append(", ".join(f"{counts[key]} {key}" for key in ("sources", "accepted", "rejected", "clips")))
            times = sorted(path.stat().st_mtime for path in (bucket_folder(cluster) / "clips/work/commits").iterdir())
            two_nodes = rate([t for t in times if joined_at < t < stopped_at])
            one_node = rate([t for t in times if t > stopped_at])
            notes.append(f"{two_nodes:.2f} videos per second on two nodes, {one_node:.2f} on one")
        with steps.step("connections refused by the policies") as notes:
            net = cluster.network
            names = {address.ip: address.name for address in net.addresses}
            notes += [f"{names.get(a, a)} -> {names.get(b, b)}:{p}" for a, b, p in sorted(net.refused())] or ["none"]


def rate(times: Sequence[float]) -> float:
    """Return events per second from their times in seconds, ascending; NaN for fewer than two."""
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else float("nan")


def num_committed(pod: Pod) -> int:
    """Return the number of videos that a decode node has committed, from its Prometheus metrics."""
    metrics = page(pod, f"http://localhost:{METRICS}/metrics").splitlines()
    lines = [line for line in metrics if line.startswith("ray_scene_prepare_units_total{")]
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines))


def check_access(nodes: RayNodes, client: Pod) -> list[str]:
    """Make requests with and without valid credentials and check their HTTP status.

    Raises:
        PodFailedError: A request without credentials was accepted, or one with credentials was refused.
    """
    api, head = f"http://{nodes.service}:{DASHBOARD}", nodes.head
    token = auth_environment(nodes.kubelet, nodes.spec)["RAY_AUTH_TOKEN"]
    settings = nodes.kubelet.namespace.environment(head_container(nodes))
    server = f"{settings['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/search?max_results=1"
    login = {"user": settings["MLFLOW_TRACKING_USERNAME"], "password": settings["MLFLOW_TRACKING_PASSWORD"]}
    requests = [
        ("jobs API without a token", http(client, f"{api}/api/jobs/"), (401, 403)),
        ("jobs API with a wrong token", http(client, f"{api}/api/jobs/", token="0" * 64), (401, 403)),
        ("jobs API with the token", http(client, f"{api}/api/jobs/", token=token), (200,)),
        ("dashboard's nodes without a token", http(client, f"{api}/nodes?view=summary"), (401, 403)),
        ("dashboard's nodes with the token", http(client, f"{api}/nodes?view=summary", token=token), (200,)),
        ("MLflow without a password", http(head, server), (401,)),
        ("MLflow with a wrong password", http(head, server, user="admin", password="x"), (401,)),  # noqa: S106
        ("MLflow with the password", http(head, server, **login), (200,)),
        ("MLflow under another host name", http(head, server, **login, host="evil.example"), (403,)),
        ("MLflow from the submitter", http(client, server, **login), (0,)),
        ("GCS from the submitter", http(client, f"http://{nodes.service}:{GCS}/"), (0,)),
    ]
    wrong = [
        f"{name}: {response.status} {response.text[:80]}"
        for name, response, expected in requests
        if response.status not in expected
    ]
    without_token = {k: v for k, v in client.environment.items() if not k.startswith("RAY_AUTH")}
    code, text = client.run(
        ["ray", "job", "submit", "--address", api, "--", "true"], env=without_token | {"RAY_AUTH_MODE": "disabled"}
    )
    if code == 0 or "authentication" not in text.lower():
        wrong.append(f"ray job submit without a token: exit code {code}")
    if wrong:
        raise PodFailedError("; ".join(wrong))
    return [f"{len(requests) + 1} requests with the expected status"]


def head_container(nodes: RayNodes) -> Manifest:
    """Return the specification of the head's container."""
    container: Manifest = nodes.spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    return container


def wait_for_job(steps: StepLog, name: str, nodes: RayNodes, client: Pod, submission_id: str) -> None:
    """Wait for the end of a job as the operator does: the submitter's exit, then the status in the jobs API.

    Raises:
        PodFailedError: The job did not succeed.
    """
    with steps.step(f"{name}: runs to its end"):
        wait_until("the job has ended", lambda: not client.alive(), alive=[nodes.head], timeout_s=3600)
        status = job_status(nodes, nodes.head, submission_id)
        if client.process.returncode or status != "SUCCEEDED":
            raise PodFailedError(f"{name} ended with status {status}: {last_lines(client, 12)}")


def train(cluster: Kubelet, steps: StepLog) -> None:
    """Run the RayJob `train`, kill its head after the first checkpoint, and check that a new cluster resumes it."""
    job = cluster.namespace.named("RayJob", "train")
    run = bucket_folder(cluster) / "runs/laptop"
    with ExitStack() as stack:
        with steps.step("train: head and nodes"):
            nodes = stack.enter_context(ray_nodes(cluster, "train-a", job["spec"]["rayClusterSpec"]))
        client = stack.enter_context(submitter(nodes, job, "train-a1", OVERRIDES["train"]))
        with steps.step("train: to its first checkpoint") as notes:
            wait_until("a checkpoint exists", lambda: checkpoints(run), alive=[nodes.head, client], timeout_s=3600)
            notes.append(checkpoints(run)[-1])
        with steps.step("train: the head is killed") as notes:
            started = time.monotonic()
            nodes.head.kill()
            wait_until("the submitter has ended", lambda: not client.alive())
            notes.append(f"submitter ended with {client.process.returncode} after {time.monotonic() - started:.0f} s")
            if client.process.returncode == 0:
                raise PodFailedError("the submitter reports that the job succeeded")
            wait_until("the workers have ended", lambda: not any(pod.alive() for pod in nodes.workers))
            notes.append(f"workers after {time.monotonic() - started:.0f} s")
    if job["spec"]["backoffLimit"] < 1:
        raise PodFailedError("backoffLimit allows no retry")
    before = checkpoints(run)
    with ExitStack() as stack:
        with steps.step("train: new cluster, as backoffLimit allows"):
            nodes = stack.enter_context(ray_nodes(cluster, "train-b", job["spec"]["rayClusterSpec"]))
        client = stack.enter_context(submitter(nodes, job, "train-b1", OVERRIDES["train"]))
        wait_for_job(steps, "train", nodes, client, "train-b1")
        with steps.step("train: its checkpoints") as notes:
            step = int(before[-1].split("_")[1])
            if f"training 'laptop' from step {step} to" not in client.text():
                raise PodFailedError(f"the retry did not resume from {before[-1]}: {client.log}")
            notes.append(f"resumed from step {step}, ended at {checkpoints(run)[-1]}")


def checkpoints(run: Path) -> list[str]:
    """Return the names of a run's committed checkpoints, oldest first."""
    folders = sorted(run.glob("step_*"))
    return [f.name for f in folders if len(list(f.glob("files-*-of-2.json"))) == 2]  # one list per worker


def sweep(cluster: Kubelet, steps: StepLog) -> None:
    """Run the RayJob `sweep`."""
    job = cluster.namespace.named("RayJob", "sweep")
    with ExitStack() as stack:
        with steps.step("sweep: head and nodes"):
            nodes = stack.enter_context(ray_nodes(cluster, "sweep-a", job["spec"]["rayClusterSpec"]))
        client = stack.enter_context(submitter(nodes, job, "sweep-a1", OVERRIDES["sweep"]))
        wait_for_job(steps, "sweep", nodes, client, "sweep-a1")
        with steps.step("sweep: its results") as notes:
            rows = json.loads((bucket_folder(cluster) / "finetune/figure4/results.json").read_text())
            if len(rows) != 4:
                raise PodFailedError(f"4 runs were requested, results.json holds {len(rows)}")
            notes.append(f"{len(rows)} runs")


RUN: dict[str, Callable[[Kubelet, StepLog], None]] = {"prepare": prepare, "train": train, "sweep": sweep}
