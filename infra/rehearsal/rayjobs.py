"""The RayJobs of the guide's step 6, each run to its end, and what is done to them on the way."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from infra.rehearsal.checks import http, page
from infra.rehearsal.manifests import Manifest
from infra.rehearsal.operator import (
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
from infra.rehearsal.pods import Kubelet, Pod, PodFailedError
from infra.rehearsal.steps import Steps

# Words after an entrypoint's own, to have it done in minutes.
SMOKE = {
    "prepare": ["clip.stride=8"],
    "train": ["steps=24", "checkpoint_every=4", "sample_every=24", "batch_size=8", "model.base_width=4"],
    "sweep": ["initializations=[vgan,random]", "fractions=[0.5,1]", "seeds=0", "finetune.iterations=4"],
}
VIDEOS = 60  # that the user has: enough for some to be left when the node of `prepare` has gone


def store(cluster: Kubelet) -> Path:
    """The folder that the S3 store serves as its bucket."""
    return cluster.claims / "s3-0-data/scene"


def prepare(cluster: Kubelet, steps: Steps) -> None:
    """The RayJob `prepare`, with a node that comes and goes, and what is refused to strangers."""
    job = cluster.namespace.named("RayJob", "prepare")
    with ExitStack() as stack:
        with steps.step("prepare: head and nodes"):
            nodes = stack.enter_context(ray_nodes(cluster, "prepare-a", job["spec"]["rayClusterSpec"]))
        with steps.step("prepare: submitted"):
            client = stack.enter_context(submitter(nodes, job, "prepare-a1", SMOKE["prepare"]))
            wait_until("its first line", lambda: "settings:" in client.text(), alive=[nodes.head, client])
        with steps.step("without a token or password: refused") as told:
            told += refusals(nodes, client)
        with steps.step("prepare: a decode node comes, works and goes") as told:
            pod = nodes.add("cpu-decode")
            wait_until("the new node is ready", lambda: "Ray runtime started" in pod.text(), alive=[pod, client])
            wait_until("the new node has committed a video", lambda: committed(pod), alive=[pod, client])
            came, first = time.time(), committed(pod)
            wait_until("it has committed six more", lambda: committed(pod) >= first + 6, alive=[pod, client])
            gone, num = time.time(), committed(pod)
            told.append(f"committed {num} videos, ended {pod.stop():.0f} s after SIGTERM")
        finish(steps, "prepare", nodes, client, "prepare-a1")
        with steps.step("prepare: what it made") as told:
            manifest = json.loads((store(cluster) / "clips/manifest.json").read_text())
            counts = manifest["counts"]
            if counts["sources"] != VIDEOS or counts["sources"] != counts["accepted"] + counts["rejected"]:
                raise PodFailedError(f"{VIDEOS} videos were given, and the manifest counts {counts}")
            told.append(", ".join(f"{counts[key]} {key}" for key in ("sources", "accepted", "rejected", "clips")))
            times = sorted(path.stat().st_mtime for path in (store(cluster) / "clips/work/commits").iterdir())
            both, alone = rate([t for t in times if came < t < gone]), rate([t for t in times if t > gone])
            told.append(f"{both:.2f} videos a second on two nodes, {alone:.2f} on one")
        with steps.step("connections that policies refused") as told:
            net = cluster.network
            names = {address.ip: address.name for address in net.there}
            told += [f"{names.get(a, a)} -> {names.get(b, b)}:{p}" for a, b, p in sorted(net.refused())] or ["none"]


def rate(times: Sequence[float]) -> float:
    """Events a second, of the times at which they happened, ascending."""
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else float("nan")


def committed(pod: Pod) -> int:
    """Videos that a decode node has committed, as it tells Prometheus."""
    metrics = page(pod, f"http://localhost:{METRICS}/metrics").splitlines()
    lines = [line for line in metrics if line.startswith("ray_scene_prepare_units_total{")]
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines))


def refusals(nodes: RayNodes, client: Pod) -> list[str]:
    """Ask what a stranger could, and what a user may.

    Raises:
        PodFailedError: one is let in, or the other is not.
    """
    api, head = f"http://{nodes.service}:{DASHBOARD}", nodes.head
    token = auth_environment(nodes.kubelet, nodes.spec)["RAY_AUTH_TOKEN"]
    settings = nodes.kubelet.namespace.environment(head_container(nodes))
    server = f"{settings['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/search?max_results=1"
    login = {"user": settings["MLFLOW_TRACKING_USERNAME"], "password": settings["MLFLOW_TRACKING_PASSWORD"]}
    asked = [
        ("jobs API without a token", http(client, f"{api}/api/jobs/"), (401, 403)),
        ("jobs API with another", http(client, f"{api}/api/jobs/", token="0" * 64), (401, 403)),
        ("jobs API with it", http(client, f"{api}/api/jobs/", token=token), (200,)),
        ("dashboard's nodes without a token", http(client, f"{api}/nodes?view=summary"), (401, 403)),
        ("dashboard's nodes with it", http(client, f"{api}/nodes?view=summary", token=token), (200,)),
        ("MLflow without a password", http(head, server), (401,)),
        ("MLflow with another", http(head, server, user="admin", password="x"), (401,)),  # noqa: S106
        ("MLflow with it", http(head, server, **login), (200,)),
        ("MLflow under another name", http(head, server, **login, host="evil.example"), (403,)),
        ("MLflow from the submitter", http(client, server, **login), (0,)),
        ("GCS from the submitter", http(client, f"http://{nodes.service}:{GCS}/"), (0,)),
    ]
    wrong = [f"{what}: {a.status} {a.text[:80]}" for what, a, right in asked if a.status not in right]
    without = {k: v for k, v in client.environment.items() if not k.startswith("RAY_AUTH")}
    code, text = client.run(
        ["ray", "job", "submit", "--address", api, "--", "true"], env=without | {"RAY_AUTH_MODE": "disabled"}
    )
    if code == 0 or "authentication" not in text.lower():
        wrong.append(f"ray job submit without a token: exit code {code}")
    if wrong:
        raise PodFailedError("; ".join(wrong))
    return [f"{len(asked) + 1} requests answered as they should be"]


def head_container(nodes: RayNodes) -> Manifest:
    container: Manifest = nodes.spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    return container


def finish(steps: Steps, name: str, nodes: RayNodes, client: Pod, identity: str) -> None:
    """Wait for a job's end as the operator does: its submitter's, and what the jobs API says."""
    with steps.step(f"{name}: runs to its end"):
        wait_until("the job has ended", lambda: not client.alive(), alive=[nodes.head], patience_s=3600)
        status = job_status(nodes, nodes.head, identity)
        if client.process.returncode or status != "SUCCEEDED":
            raise PodFailedError(f"{name} ended as {status}: {last_lines(client, 12)}")


def train(cluster: Kubelet, steps: Steps) -> None:
    """The RayJob `train`; its head is lost after the first checkpoint, and the operator's next try goes on from it."""
    job = cluster.namespace.named("RayJob", "train")
    run = store(cluster) / "runs/laptop"
    with ExitStack() as stack:
        with steps.step("train: head and nodes"):
            nodes = stack.enter_context(ray_nodes(cluster, "train-a", job["spec"]["rayClusterSpec"]))
        client = stack.enter_context(submitter(nodes, job, "train-a1", SMOKE["train"]))
        with steps.step("train: to its first checkpoint") as told:
            wait_until("a checkpoint is there", lambda: saved(run), alive=[nodes.head, client], patience_s=3600)
            told.append(saved(run)[-1])
        with steps.step("train: the head is lost") as told:
            started = time.monotonic()
            nodes.head.kill()
            wait_until("the submitter has ended", lambda: not client.alive())
            told.append(f"submitter ended with {client.process.returncode} after {time.monotonic() - started:.0f} s")
            if client.process.returncode == 0:
                raise PodFailedError("the submitter says that the job succeeded")
            wait_until("the workers have ended", lambda: not any(pod.alive() for pod in nodes.workers))
            told.append(f"workers after {time.monotonic() - started:.0f} s")
    if job["spec"]["backoffLimit"] < 1:
        raise PodFailedError("backoffLimit promises no other try")
    before = saved(run)
    with ExitStack() as stack:
        with steps.step("train: another cluster, as backoffLimit promises"):
            nodes = stack.enter_context(ray_nodes(cluster, "train-b", job["spec"]["rayClusterSpec"]))
        client = stack.enter_context(submitter(nodes, job, "train-b1", SMOKE["train"]))
        finish(steps, "train", nodes, client, "train-b1")
        with steps.step("train: what it made") as told:
            step = int(before[-1].split("_")[1])
            if f"training 'laptop' from step {step} to" not in client.text():
                raise PodFailedError(f"the second try did not go on from {before[-1]}: {client.log}")
            told.append(f"went on from step {step}, ended at {saved(run)[-1]}")


def saved(run: Path) -> list[str]:
    """Names of a run's committed checkpoints, oldest first."""
    folders = sorted(run.glob("step_*"))
    return [f.name for f in folders if len(list(f.glob("files-*-of-2.json"))) == 2]  # a list from each of two workers


def sweep(cluster: Kubelet, steps: Steps) -> None:
    """The RayJob `sweep`."""
    job = cluster.namespace.named("RayJob", "sweep")
    with ExitStack() as stack:
        with steps.step("sweep: head and nodes"):
            nodes = stack.enter_context(ray_nodes(cluster, "sweep-a", job["spec"]["rayClusterSpec"]))
        client = stack.enter_context(submitter(nodes, job, "sweep-a1", SMOKE["sweep"]))
        finish(steps, "sweep", nodes, client, "sweep-a1")
        with steps.step("sweep: what it made") as told:
            rows = json.loads((store(cluster) / "finetune/figure4/results.json").read_text())
            if len(rows) != 4:
                raise PodFailedError(f"4 runs were asked for, results.json holds {len(rows)}")
            told.append(f"{len(rows)} runs")


RUN: dict[str, Callable[[Kubelet, Steps], None]] = {"prepare": prepare, "train": train, "sweep": sweep}
