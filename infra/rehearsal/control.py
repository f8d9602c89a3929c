"""The cluster's part in the guide: what each of its kubectl commands has done."""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from infra.rehearsal.api import Reply, data_key, secret_reply, without_namespace
from infra.rehearsal.manifests import ROOT
from infra.rehearsal.operator import RayNodes, last_lines, ray_nodes
from infra.rehearsal.pods import Kubelet, Pod, PodFailedError
from infra.rehearsal.rayjobs import RUN, store
from infra.rehearsal.services import mlflow, postgres, s3
from infra.rehearsal.steps import Steps

OVERLAY = "infra/k8s/overlays/local"  # what the guide applies


@dataclass
class Control:
    """Answers the guide's commands, in the order in which they come."""

    cluster: Kubelet
    user: Path  # the user's machine: what the guide has in /data lies here
    steps: Steps
    running: ExitStack  # ends what is started
    pods: dict[str, Pod] = field(default_factory=dict)
    nodes: RayNodes | None = None  # of the standing cluster
    database: Pod | None = None

    def answer(self, words: list[str], text: str) -> Reply:
        """Do what kubectl is asked to.

        Raises:
            PodFailedError: it does not come to be, or is nothing that the guide was known to ask for.
            LookupError, ValueError: nothing has this name.
        """
        words = without_namespace(words)
        if reply := secret_reply(self.cluster.namespace.secrets, words, text):
            return reply
        named = self.cluster.namespace.named
        match words:
            case ["create", "namespace", "scene"]:
                return Reply("namespace/scene created\n")
            case ["apply", "-k", path] if path == OVERLAY:
                self.start()
                made = [f"{m['kind']}/{m['metadata']['name']} created\n" for m in self.cluster.namespace.manifests]
                return Reply("".join(made))
            case ["rollout", "status", "statefulset/postgres" | "deployment/mlflow" as what]:
                return Reply(f"{what} rolled out\n")  # start() has waited for it
            case ["get", "raycluster", "scene"] if self.nodes:
                return Reply("scene ready\n")
            case ["get", "configmap", name, "-o", path]:
                return Reply(str(named("ConfigMap", name)["data"][data_key(path)]))
            case ["port-forward", service, _]:
                return Reply(network=self.network_of(service.removeprefix("service/")))
            case ["apply", "-f", path]:
                return Reply(f"pod/{self.start_pod(ROOT / path)} created\n")
            case ["wait", "--for=condition=Ready", pod, _]:
                if not (there := self.pods[pod.removeprefix("pod/")]).alive():
                    raise PodFailedError(f"{pod} has ended: {last_lines(there)}")
                return Reply(f"{pod} condition met\n")
            case ["cp", source, target]:
                name, _, path = target.partition(":")
                copy(self.user / source.lstrip("/"), self.pods[name], Path(path))
                return Reply()
            case ["delete", "pod", name]:
                return Reply(f"pod {name} deleted in {self.pods.pop(name).stop():.0f} s\n")
            case ["patch", "rayjob", name, "--type", "merge", "-p", patch]:
                named("RayJob", name)["spec"].update(json.loads(patch)["spec"])
                return Reply(f"rayjob/{name} patched\n")
            case ["wait", "--for=jsonpath={.status.jobStatus}=SUCCEEDED", job, _]:
                name = job.removeprefix("rayjob/")
                if named("RayJob", name)["spec"]["suspend"]:
                    raise PodFailedError(f"{job} is waited for while it is suspended")
                RUN[name](self.cluster, self.steps)
                return Reply(f"{job} condition met\n")
        raise PodFailedError(f"not rehearsed: kubectl {' '.join(words)}")

    def start(self) -> None:
        """Everything that runs by itself; its secrets are there."""
        with self.steps.step("PostgreSQL"):
            self.database = self.running.enter_context(postgres(self.cluster))
        with self.steps.step("S3 store"):
            self.running.enter_context(s3(self.cluster))
        with self.steps.step("MLflow: tables, server"):
            self.running.enter_context(mlflow(self.cluster))
        with self.steps.step("the standing cluster's head"):
            spec = self.cluster.namespace.named("RayCluster", "scene")["spec"]
            self.nodes = self.running.enter_context(ray_nodes(self.cluster, "scene", spec))

    def start_pod(self, path: Path) -> str:
        """The name of a pod started as the file says."""
        pod = yaml.safe_load(path.read_text())
        name = str(pod["metadata"]["name"])
        self.pods[name] = self.running.enter_context(self.cluster.pod(name, pod, pod["metadata"]["labels"]))
        return name

    def network_of(self, service: str) -> str:
        """The network of the pod behind a service."""
        networks = {address.ip: address.namespace for address in self.cluster.network.there}
        for line in (self.cluster.folder / "hosts").read_text().splitlines():
            ip, *names = line.split()
            if service in names and ip in networks:
                return networks[ip]
        raise PodFailedError(f"no pod is behind service/{service}")

    def add_node(self) -> None:
        """What the autoscaler does for a job on the standing cluster."""
        assert self.nodes, "the overlay has been applied"
        with self.steps.step("the standing cluster's decode node"):
            self.nodes.add("cpu-decode")
            self.nodes.wait_for_workers()

    def remove_node(self) -> None:
        """What it does with a node that has nothing to do."""
        assert self.nodes, "the overlay has been applied"
        with self.steps.step("the standing cluster's decode node goes"):
            self.nodes.workers.pop().stop()


def copy(source: Path, pod: Pod, target: Path) -> None:
    """A folder to the same name in a pod, as kubectl does it: by tar at both ends."""
    if source.name != target.name:
        raise PodFailedError(f"{source.name} is copied to another name, {target}")
    pack = ["tar", "-C", str(source.parent), "-cf", "-", source.name]
    packed = subprocess.run(pack, check=True, stdout=subprocess.PIPE)
    code, text = pod.run(["tar", "-xmf", "-", "-C", str(target.parent)], given=packed.stdout)
    if code:
        raise PodFailedError(f"{source} cannot be copied into {pod.name}: {text}")


RUNS = """select e.name, r.status, count(*) from runs r join experiments e using (experiment_id)
          group by 1, 2 order by 1, 2"""


def tracked(control: Control) -> list[str]:
    """What MLflow's database holds of runs, and its folder of the bucket of artifacts.

    Raises:
        PodFailedError: a run that has not finished, or nothing.
    """
    assert control.database, "the overlay has been applied"
    code, text = control.database.run(["psql", "--username=mlflow", "--dbname=mlflow", "-AtF,", "-c", RUNS])
    rows = [line.rsplit(",", 2) for line in text.splitlines()]
    artifacts = [path for path in (store(control.cluster) / "mlflow").rglob("*") if path.is_file()]
    if code or not rows or not artifacts or any(status != "FINISHED" for _, status, _ in rows):
        raise PodFailedError(f"{text.strip() or 'no run'}; {len(artifacts)} artifacts")
    return [*(f"{name}: {num} finished" for name, _, num in rows), f"{len(artifacts)} artifacts"]
