"""Control plane for the guide's kubectl commands: starts and stops pods, and answers each command."""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from infra.local_kubernetes.backing_services import mlflow, postgres, s3
from infra.local_kubernetes.kubectl_server import Reply, data_key, secret_reply, without_namespace
from infra.local_kubernetes.kuberay_operator import RayNodes, last_lines, ray_nodes
from infra.local_kubernetes.manifests import ROOT
from infra.local_kubernetes.pods import Kubelet, Pod, PodFailedError
from infra.local_kubernetes.rayjobs import RUN, bucket_folder
from infra.local_kubernetes.step_log import StepLog

OVERLAY = "infra/k8s/overlays/local"  # the overlay that the guide applies


@dataclass
class ControlPlane:
    """Handler of the guide's kubectl commands, in the guide's order."""

    cluster: Kubelet
    user: Path  # the user's machine: the guide's /data lies below it
    steps: StepLog
    running: ExitStack  # ends everything that is started
    pods: dict[str, Pod] = field(default_factory=dict)
    nodes: RayNodes | None = None  # of the standing cluster
    database: Pod | None = None

    def answer(self, args: list[str], text: str) -> Reply:
        """Execute a kubectl command.

        Args:
            args: kubectl's arguments.
            text: Standard input of the command.

        Raises:
            PodFailedError: The command failed, or it is not one of the guide's.
            LookupError: No pod or key has this name.
            ValueError: No manifest has this name.
        """
        args = without_namespace(args)
        if reply := secret_reply(self.cluster.namespace.secrets, args, text):
            return reply
        named = self.cluster.namespace.named
        match args:
            case ["create", "namespace", "scene"]:
                return Reply("namespace/scene created\n")
            case ["apply", "-k", path] if path == OVERLAY:
                self.start()
                lines = [f"{m['kind']}/{m['metadata']['name']} created\n" for m in self.cluster.namespace.manifests]
                return Reply("".join(lines))
            case ["rollout", "status", "statefulset/postgres" | "deployment/mlflow" as resource]:
                return Reply(f"{resource} rolled out\n")  # start() has waited for it
            case ["get", "raycluster", "scene"] if self.nodes:
                return Reply("scene ready\n")
            case ["get", "configmap", name, "-o", path]:
                return Reply(str(named("ConfigMap", name)["data"][data_key(path)]))
            case ["port-forward", service, _]:
                return Reply(network=self.network_of(service.removeprefix("service/")))
            case ["apply", "-f", path]:
                return Reply(f"pod/{self.start_pod(ROOT / path)} created\n")
            case ["wait", "--for=condition=Ready", resource, _]:
                if not (pod := self.pods[resource.removeprefix("pod/")]).alive():
                    raise PodFailedError(f"{resource} has ended: {last_lines(pod)}")
                return Reply(f"{resource} condition met\n")
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
                    raise PodFailedError(f"kubectl waits for {job}, which is suspended")
                RUN[name](self.cluster, self.steps)
                return Reply(f"{job} condition met\n")
        raise PodFailedError(f"not implemented: kubectl {' '.join(args)}")

    def start(self) -> None:
        """Start the overlay's services and the standing cluster's head; the secrets must exist."""
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
        """Start the pod of a manifest file and return its name."""
        pod = yaml.safe_load(path.read_text())
        name = str(pod["metadata"]["name"])
        self.pods[name] = self.running.enter_context(self.cluster.pod(name, pod, pod["metadata"]["labels"]))
        return name

    def network_of(self, service: str) -> str:
        """Return the network namespace of the pod behind a service.

        Raises:
            PodFailedError: The service has no running pod.
        """
        networks = {address.ip: address.namespace for address in self.cluster.network.addresses}
        for line in (self.cluster.folder / "hosts").read_text().splitlines():
            ip, *names = line.split()
            if service in names and ip in networks:
                return networks[ip]
        raise PodFailedError(f"no pod is behind service/{service}")

    def add_node(self) -> None:
        """Add a decode node to the standing cluster, as the autoscaler does for a job."""
        assert self.nodes, "the overlay has been applied"
        with self.steps.step("the standing cluster's decode node starts"):
            self.nodes.add("cpu-decode")
            self.nodes.wait_for_workers()

    def remove_node(self) -> None:
        """Remove the standing cluster's decode node, as the autoscaler does with an idle node."""
        assert self.nodes, "the overlay has been applied"
        with self.steps.step("the standing cluster's decode node stops"):
            self.nodes.workers.pop().stop()


def copy(source: Path, pod: Pod, target: Path) -> None:
    """Copy a folder to a folder of the same name in a pod, as kubectl does: with tar at both ends."""
    if source.name != target.name:
        raise PodFailedError(f"{source.name} is copied to another name, {target}")
    pack = ["tar", "-C", str(source.parent), "-cf", "-", source.name]
    archive = subprocess.run(pack, check=True, stdout=subprocess.PIPE)
    code, text = pod.run(["tar", "-xmf", "-", "-C", str(target.parent)], stdin=archive.stdout)
    if code:
        raise PodFailedError(f"{source} cannot be copied into {pod.name}: {text}")


RUNS = """select e.name, r.status, count(*) from runs r join experiments e using (experiment_id)
          group by 1, 2 order by 1, 2"""


def check_tracking(control_plane: ControlPlane) -> list[str]:
    """Count the finished runs in MLflow's database and the artifacts in the bucket.

    Raises:
        PodFailedError: A run has not finished, or there is no run or no artifact.
    """
    assert control_plane.database, "the overlay has been applied"
    code, text = control_plane.database.run(["psql", "--username=mlflow", "--dbname=mlflow", "-AtF,", "-c", RUNS])
    rows = [line.rsplit(",", 2) for line in text.splitlines()]
    artifacts = [path for path in (bucket_folder(control_plane.cluster) / "mlflow").rglob("*") if path.is_file()]
    if code or not rows or not artifacts or any(status != "FINISHED" for _, status, _ in rows):
        raise PodFailedError(f"{text.strip() or 'no run'}; {len(artifacts)} artifacts")
    return [*(f"{name}: {num} finished" for name, _, num in rows), f"{len(artifacts)} artifacts"]
