"""`make rehearse`: the manifests of overlay `local`, run on this machine without Kubernetes."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from infra.rehearsal.checks import http, page
from infra.rehearsal.guide import follow
from infra.rehearsal.images import image_disks
from infra.rehearsal.manifests import Manifest, Namespace, build, make_secrets, walk
from infra.rehearsal.network import Network, network
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
from infra.rehearsal.pods import Disk, Failed, Kubelet, Pod, kubelet, machine_disk, missing_programs, own_prefix
from infra.rehearsal.services import mlflow, postgres, s3
from jobs import command
from vgan.config import option
from vgan.drawn import DEFAULT_CLASSES, draw_action_set
from vgan.errors import BadInput

ABOUT = """Rehearse the Kubernetes manifests of overlay `local` on this machine: no cluster, no registry. Every pod runs
as its manifest says, in a network of its own that keeps the NetworkPolicies; the three RayJobs run their own
entrypoints at smoke size. Needs root, kubectl, bubblewrap, iproute2, nftables and PostgreSQL.

  make rehearse                  pods of this machine's programs and environment
  make rehearse IMAGE=on         of the built images (make image)
"""
# Words after an entrypoint's own, to have it done in minutes.
SMOKE = {
    "prepare": ["clip.stride=8"],
    "train": ["steps=24", "checkpoint_every=4", "sample_every=24", "batch_size=8", "model.base=4"],
    "sweep": ["inits=[vgan,random]", "fractions=[0.5,1]", "seeds=0", "finetune.iterations=4"],
}
VIDEOS = 40


@dataclass(frozen=True, kw_only=True)
class RehearsalConfig:
    """How the manifests are rehearsed."""

    out: str = option(
        "out/rehearsal", "folder for logs, volumes and databases; what an earlier one left there is removed"
    )
    mlflow: str = option("", "environment of the MLflow server, of infra/image/mlflow.txt (make rehearse makes it)")
    image: bool = option(False, "on: Ray's and MLflow's pods from the images of make image; off: this environment")
    only: list[str] = option([], "parts to run, of prepare, train, sweep and guide; empty: all")


@dataclass
class Steps:
    """What was done, how long it took and how it ended."""

    rows: list[tuple[str, float, str]] = field(default_factory=list)
    failed: bool = False

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time the block; what it appends to the list is its outcome."""
        print(f"{time.strftime('%H:%M:%S')}  {name} ...", flush=True)
        started, told, outcome = time.monotonic(), list[str](), "interrupted"
        try:
            yield told
            outcome = "ok" + (f": {'; '.join(told)}" if told else "")
        except Exception as fault:
            outcome = f"FAILED: {fault or type(fault).__name__}"
            raise
        finally:
            self.rows.append((name, time.monotonic() - started, outcome))
            print(f"          {outcome}", flush=True)

    def table(self) -> str:
        width = max((len(name) for name, _, _ in self.rows), default=0)
        lines = [f"  {name:<{width}}{seconds:8.0f} s   {outcome[:150]}" for name, seconds, outcome in self.rows]
        return "\n".join(["steps", *lines, f"  {'all':<{width}}{sum(s for _, s, _ in self.rows):8.0f} s"])


def main(steps: Steps, config: RehearsalConfig) -> None:
    """Run every step; the table is printed however it ends."""
    check_machine(config)
    out = Path(config.out).expanduser().absolute()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            rehearse(config, out, steps, stack)
    except Failed:
        steps.failed = True  # which the table tells
    finally:
        print(f"\n{steps.table()}\nlogs: {out}/pods/*/log", flush=True)


def check_machine(config: RehearsalConfig) -> None:
    """Raise BadInput where something is missing that can be told before anything is started."""
    if os.geteuid():
        raise BadInput("pods get users and networks of their own, which takes root: sudo make rehearse")
    if missing := missing_programs():
        raise BadInput(
            f"{', '.join(missing)} not found: install iproute2, nftables, util-linux and bubblewrap with your packages"
        )
    if not config.mlflow or not (Path(config.mlflow) / "bin/mlflow").exists():
        raise BadInput(f"mlflow={config.mlflow!r} is no environment with an MLflow server: make rehearse makes one")
    if not list(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        raise BadInput("no PostgreSQL below /usr/lib/postgresql: install the package postgresql")


def rehearse(config: RehearsalConfig, out: Path, steps: Steps, stack: ExitStack) -> None:
    """The steps in order. What they start ends with `stack`."""
    with steps.step("manifests and secrets") as told:
        namespace = Namespace(build("local"), make_secrets(out / "secrets"))
        told.append(f"{len(namespace.manifests)} manifests, {len(namespace.secrets)} secrets")
    with steps.step("videos and a labelled set, drawn"):
        draw_inputs(out / "claims")
    net = stack.enter_context(network(namespace.of_kind("NetworkPolicy")))
    found = disks(config, out)
    if config.image:
        with steps.step("images"):
            wanted = {c["image"] for c in containers(namespace) if c["image"].startswith("scene-dynamics-")}
            found |= stack.enter_context(image_disks(*sorted(wanted)))
    cluster = stack.enter_context(kubelet(namespace, net, found, out))
    with steps.step("PostgreSQL"):
        database = stack.enter_context(postgres(cluster))
    with steps.step("S3 store"):
        stack.enter_context(s3(cluster))
    with steps.step("MLflow: tables, server"):
        stack.enter_context(mlflow(cluster))
    jobs = config.only or [*SMOKE, "guide"]
    if "prepare" in jobs:
        prepare(cluster, net, steps)
    if "train" in jobs:
        train(cluster, steps)
    if "sweep" in jobs:
        sweep(cluster, steps)
    if "guide" in jobs:
        guide(cluster, net, out, steps)
    with steps.step("MLflow: runs in PostgreSQL, artifacts in S3") as told:
        told += tracked(cluster, database)


def disks(config: RehearsalConfig, out: Path) -> dict[str, Disk]:
    """What each image holds."""
    prefix, base = own_prefix()
    own = machine_disk(prefix, base)
    # DeepSpeed's extension was built by the set-up; torch locks its folder when it loads it.
    ops = out / "torch_extensions"
    shutil.copytree(prefix / "torch_extensions", ops)
    for path in (ops, *ops.rglob("*")):
        os.chown(path, 1000, 1000)
    ray = replace(own, over=(*own.over, "--bind", str(ops), str(prefix / "torch_extensions")))
    server = Path(config.mlflow).absolute()
    return {
        "scene-dynamics-cpu": ray,
        "scene-dynamics-mlflow": machine_disk(server, base),
        "postgres": own,
        "rclone/rclone": own,
    }


def containers(namespace: Namespace) -> Iterator[Manifest]:
    """Every container that a manifest names."""
    for manifest in namespace.manifests:
        yield from (value for _, value in walk(manifest) if isinstance(value, dict) and "image" in value)


def draw_inputs(claims: Path) -> None:
    """Videos in the bucket, and a labelled set where pods mount it."""
    labelled, bucket = claims / "datasets/ucf101", claims / "s3-0-data/scene/videos"
    draw_action_set(labelled, groups=3, size=(90, 120))
    bucket.parent.mkdir(parents=True)
    draw_videos(bucket, "video", groups=VIDEOS // len(DEFAULT_CLASSES), seed=1)
    for path in claims.rglob("*"):
        os.chown(path, 1000, 1000)


def draw_videos(folder: Path, name: str, **options: Any) -> None:
    """A new folder of numbered videos; under UCF101's names a sweep would take them for test videos."""
    draw_action_set(folder, num_frames=100, size=(120, 160), **options)
    for number, path in enumerate(sorted((folder / "UCF-101").rglob("*.avi"))):
        path.rename(folder / f"{name}_{number:02d}.avi")
    for part in ("UCF-101", "ucfTrainTestlist"):
        shutil.rmtree(folder / part)


def store(cluster: Kubelet) -> Path:
    """The folder that the S3 store serves as its bucket."""
    return cluster.claims / "s3-0-data/scene"


def guide(cluster: Kubelet, net: Network, out: Path, steps: Steps) -> None:
    """The guide's commands on the standing cluster, with the one node that its autoscaler would add."""
    user = out / "guide"
    user.mkdir()
    draw_videos(user / "videos", "mine", classes=DEFAULT_CLASSES[:2], groups=3, seed=2)
    with ExitStack() as stack:
        with steps.step("guide: the standing cluster"):
            spec = cluster.namespace.named("RayCluster", "scene")["spec"]
            nodes = stack.enter_context(ray_nodes(cluster, "scene", spec))
            nodes.add("cpu-decode")
            nodes.wait_for_workers()
        with steps.step("guide: steps 3, 4, 5 and 7, word for word") as told:
            follow(cluster, net, user, out / "secrets")
            counts = json.loads((store(cluster) / "try/manifest.json").read_text())["counts"]
            told.append(f"{counts['sources']} videos in the store, prepared, {counts['clips']} clips")


def prepare(cluster: Kubelet, net: Network, steps: Steps) -> None:
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
            came = time.time()
            wait_until("it has committed five more", lambda: committed(pod) > 5, alive=[pod, client])
            gone, num = time.time(), committed(pod)
            told.append(f"committed {num} videos, ended {pod.stop():.0f} s after SIGTERM")
        finish(steps, "prepare", nodes, client, "prepare-a1")
        with steps.step("prepare: what it made") as told:
            manifest = json.loads((store(cluster) / "clips/manifest.json").read_text())
            counts = manifest["counts"]
            if counts["sources"] != VIDEOS or counts["sources"] != counts["accepted"] + counts["rejected"]:
                raise Failed(f"{VIDEOS} videos were given, and the manifest counts {counts}")
            told.append(", ".join(f"{counts[key]} {key}" for key in ("sources", "accepted", "rejected", "clips")))
            times = sorted(path.stat().st_mtime for path in (store(cluster) / "clips/work/commits").iterdir())
            both, alone = rate([t for t in times if came < t < gone]), rate([t for t in times if t > gone])
            told.append(f"{both:.2f} videos a second on two nodes, {alone:.2f} on one")
        with steps.step("connections that policies refused") as told:
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
        Failed: one is let in, or the other is not.
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
        raise Failed("; ".join(wrong))
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
            raise Failed(f"{name} ended as {status}: {last_lines(client, 12)}")


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
                raise Failed("the submitter says that the job succeeded")
            wait_until("the workers have ended", lambda: not any(pod.alive() for pod in nodes.workers))
            told.append(f"workers after {time.monotonic() - started:.0f} s")
    if job["spec"]["backoffLimit"] < 1:
        raise Failed("backoffLimit promises no other try")
    before = saved(run)
    with ExitStack() as stack:
        with steps.step("train: another cluster, as backoffLimit promises"):
            nodes = stack.enter_context(ray_nodes(cluster, "train-b", job["spec"]["rayClusterSpec"]))
        client = stack.enter_context(submitter(nodes, job, "train-b1", SMOKE["train"]))
        finish(steps, "train", nodes, client, "train-b1")
        with steps.step("train: what it made") as told:
            step = int(before[-1].split("_")[1])
            if f"training 'laptop' from step {step} to" not in client.text():
                raise Failed(f"the second try did not go on from {before[-1]}: {client.log}")
            told.append(f"went on from step {step}, ended at {saved(run)[-1]}")


def saved(run: Path) -> list[str]:
    """Names of a run's committed checkpoints, oldest first."""
    folders = sorted(run.glob("step_*"))
    return [f.name for f in folders if len(list(f.glob("files-*-of-2.json"))) == 2]  # a list from each of two workers


RUNS = """select e.name, r.status, count(*) from runs r join experiments e using (experiment_id)
          group by 1, 2 order by 1, 2"""


def tracked(cluster: Kubelet, database: Pod) -> list[str]:
    """What MLflow's database holds of runs, and its folder of the bucket of artifacts.

    Raises:
        Failed: a run that has not finished, or nothing.
    """
    code, text = database.run(["psql", "--username=mlflow", "--dbname=mlflow", "-AtF,", "-c", RUNS])
    rows = [line.rsplit(",", 2) for line in text.splitlines()]
    artifacts = [path for path in (store(cluster) / "mlflow").rglob("*") if path.is_file()]
    if code or not rows or not artifacts or any(status != "FINISHED" for _, status, _ in rows):
        raise Failed(f"{text.strip() or 'no run'}; {len(artifacts)} artifacts")
    return [*(f"{name}: {num} finished" for name, _, num in rows), f"{len(artifacts)} artifacts"]


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
                raise Failed(f"4 runs were asked for, results.json holds {len(rows)}")
            told.append(f"{len(rows)} runs")


if __name__ == "__main__":
    steps = Steps()
    raise SystemExit(command.run(partial(main, steps), RehearsalConfig, ABOUT) or int(steps.failed))
