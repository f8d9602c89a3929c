"""What KubeRay's operator (1.7) makes of a RayCluster and a RayJob: commands, environment, services, another try.

Left out: its autoscaler, its init container that waits for the head (workers are started when the head is ready), and
its probes' timing (their requests are the ones made here).
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from infra.rehearsal.checks import http, page
from infra.rehearsal.manifests import Manifest, number
from infra.rehearsal.pods import Kubelet, Pod, PodFailedError

GCS, DASHBOARD, AGENT, METRICS = 6379, 8265, 52365, 8080
# Scaled to one machine: Ray would take a third of all its memory for each node's objects.
OBJECT_STORE_BYTES = 300_000_000
MAX_REPLACED = 5
PATIENCE_S, POLL_S = 1200.0, 2.0  # a busy machine takes its time


def wait_until(
    what: str, done: Callable[[], object], *, alive: Sequence[Pod] = (), patience_s: float = PATIENCE_S
) -> None:
    """Wait until `done()` holds.

    Raises:
        PodFailedError: it took too long, or one of the pods `alive` ended before.
    """
    for _ in range(int(patience_s / POLL_S)):  # not by the clock: a machine may have been asleep
        if done():
            return
        for pod in alive:
            if not pod.alive():
                raise PodFailedError(f"{pod.name} ended while waiting until {what}: {last_lines(pod)}")
        time.sleep(POLL_S)
    raise PodFailedError(f"waited {patience_s:.0f} s until {what}")


def last_lines(pod: Pod, count: int = 5) -> str:
    return " | ".join(line for line in pod.text().splitlines()[-count:] if line.strip()) + f" ({pod.log})"


@dataclass
class RayNodes:
    """A RayCluster's pods, head first."""

    name: str
    spec: Manifest
    kubelet: Kubelet
    head: Pod
    workers: list[Pod] = field(default_factory=list)
    replaced: int = 0
    started: int = 0
    _stack: ExitStack = field(default_factory=ExitStack)

    @property
    def service(self) -> str:
        """The name that leads to the head."""
        return f"{self.name}-head-svc.scene.svc.cluster.local"

    def group(self, name: str) -> Manifest:
        (found,) = [g for g in self.spec["workerGroupSpecs"] if g["groupName"] == name]
        return found

    def add(self, group_name: str) -> Pod:
        """Start one more worker of a group."""
        self.workers.append(self._start(group_name))
        return self.workers[-1]

    def _start(self, group_name: str) -> Pod:
        group, self.started = self.group(group_name), self.started + 1
        name = f"{self.name}-{group_name}-{self.started}"
        labels = group["template"]["metadata"]["labels"] | {
            "ray.io/node-type": "worker",
            "ray.io/group": group_name,
            "ray.io/cluster": self.name,
        }
        return self._stack.enter_context(
            self.kubelet.pod(
                name,
                group["template"],
                labels,
                command=ray_start(group, f"{self.service}:{GCS}"),
                extra=self._environment(f"{self.service}:{GCS}", group_name),
            )
        )

    def _environment(self, address: str, group: str) -> dict[str, str]:
        return ray_environment(self.kubelet, self.spec, self.name, address) | {"RAY_NODE_TYPE_NAME": group}

    def wait_for_workers(self) -> None:
        """Until each worker answers its probe. One that ends is replaced: Ray gives a node 30 s to start.

        Raises:
            PodFailedError: it takes too long, or workers keep ending.
        """

        def ready() -> bool:
            for place, pod in enumerate(self.workers):
                if not pod.alive():
                    if self.replaced == MAX_REPLACED:
                        raise PodFailedError(
                            f"{pod.name} ended, and {MAX_REPLACED} workers before it: {last_lines(pod)}"
                        )
                    self.replaced += 1
                    self.workers[place] = self._start(pod.address.labels["ray.io/group"])
            return all(map(worker_ready, self.workers))

        wait_until("workers are ready", ready, alive=[self.head])


def head_ready(pod: Pod) -> bool:
    """The operator's readiness probe of a head."""
    return worker_ready(pod) and "success" in page(pod, f"http://localhost:{DASHBOARD}/api/gcs_healthz")


def worker_ready(pod: Pod) -> bool:
    """The operator's readiness probe of a worker."""
    return "success" in page(pod, f"http://localhost:{AGENT}/api/local_raylet_healthz")


@contextmanager
def ray_nodes(kubelet: Kubelet, name: str, spec: Manifest) -> Iterator[RayNodes]:
    """A RayCluster's head and as many workers as it names, ready, for the length of the block."""
    head = spec["headGroupSpec"]
    labels = {"ray.io/node-type": "head", "ray.io/group": "headgroup", "ray.io/cluster": name}
    with (
        kubelet.pod(
            f"{name}-head",
            head["template"],
            head["template"]["metadata"]["labels"] | labels,
            command=ray_start(head, ""),
            extra=ray_environment(kubelet, spec, name, f"127.0.0.1:{GCS}") | {"RAY_NODE_TYPE_NAME": "headgroup"},
            services=[f"{name}-head-svc"],
        ) as pod,
        ExitStack() as stack,
    ):
        made = RayNodes(name, spec, kubelet, pod, _stack=stack)
        wait_until("the head is ready", lambda: head_ready(pod), alive=[pod])
        for group in spec["workerGroupSpecs"]:
            for _ in range(group["replicas"]):
                made.add(group["groupName"])
        made.wait_for_workers()
        yield made


def ray_start(group: Manifest, address: str) -> list[str]:
    """The command of a Ray pod: `ray start` with the group's parameters, labels and what its limits make of them.

    Args:
        address: of the head; empty for the head itself.
    """
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    params = {
        "block": "true",
        "dashboard-agent-listen-port": str(AGENT),
        "metrics-export-port": str(METRICS),
        "memory": str(number(limits["memory"])),
        "num-cpus": str(number(limits["cpu"])),
        "object-store-memory": str(OBJECT_STORE_BYTES),
        **({"address": address} if address else {"dashboard-host": "0.0.0.0"}),  # noqa: S104 - KubeRay's default
        **group["rayStartParams"],
    }
    if labels := group.get("labels"):
        params["labels"] = ",".join(f"{key}={value}" for key, value in labels.items())
    flags = " ".join(
        f"--{key}" if value == "true" else f"--{key}={shlex.quote(value)}" for key, value in params.items()
    )
    start = "ray start" if address else "ray start --head"
    return ["/bin/bash", "-c", "--", f"ulimit -n 65536; {start} {flags}"]


def ray_environment(kubelet: Kubelet, spec: Manifest, cluster: str, address: str) -> dict[str, str]:
    """What the operator adds to a Ray container's environment."""
    host = address.rpartition(":")[0]
    return {
        "FQ_RAY_IP": host,
        "RAY_IP": host.split(".")[0] if not host[0].isdigit() else host,
        "RAY_PORT": str(GCS),
        "RAY_ADDRESS": address,
        "RAY_CLUSTER_NAME": cluster,
        "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves the machine
        "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE": "1",
        **auth_environment(kubelet, spec),
    }


def auth_environment(kubelet: Kubelet, spec: Manifest) -> dict[str, str]:
    """The token that `authOptions` names."""
    options = spec["authOptions"]
    return {
        "RAY_AUTH_MODE": options["mode"],
        "RAY_AUTH_TOKEN": kubelet.namespace.secrets[options["secretName"]]["auth_token"],
    }


@contextmanager
def submitter(nodes: RayNodes, job: Manifest, identity: str, smoke: Sequence[str]) -> Iterator[Pod]:
    """A RayJob's submitter pod, which submits the entrypoint and follows its output, for the length of the block.

    Args:
        smoke: words after the entrypoint's own, which make the job small.
    """
    spec = job["spec"]
    address = f"http://{nodes.service}:{DASHBOARD}"
    runtime_env = ["--runtime-env-json", shlex.quote(spec["runtimeEnvYAML"])] if "runtimeEnvYAML" in spec else []
    health = f"python -c \"import urllib.request as r; r.urlopen('{address}/api/gcs_healthz', timeout=5)\""
    submit = ["ray job submit --address", address, "--no-wait", *runtime_env, "--submission-id", identity, "--"]
    script = (
        f"until {health} >/dev/null 2>&1 ; do echo waiting for {address} ; sleep 2 ; done ; "
        f"if ! ray job status --address {address} {identity} >/dev/null 2>&1 ; "
        f"then {' '.join(submit)} {spec['entrypoint'].strip()} {' '.join(smoke)} ; fi ; "
        f"ray job logs --address {address} --follow {identity}"
    )
    template = spec["submitterPodTemplate"]
    extra = {
        "PYTHONUNBUFFERED": "1",
        "RAY_DASHBOARD_ADDRESS": address,
        "RAY_JOB_SUBMISSION_ID": identity,
        "RAY_USAGE_STATS_ENABLED": "0",
        **auth_environment(nodes.kubelet, spec["rayClusterSpec"]),
    }
    with nodes.kubelet.pod(
        f"{identity}-submitter",
        template,
        template["metadata"]["labels"],
        command=["/bin/bash", "-ce", "--", script],
        extra=extra,
    ) as pod:
        yield pod


def job_status(nodes: RayNodes, client: Pod, identity: str) -> str:
    """What the jobs API says of a job, which the operator asks for too; "" if it does not answer."""
    token = auth_environment(nodes.kubelet, nodes.spec)["RAY_AUTH_TOKEN"]
    found = http(client, f"http://{nodes.service}:{DASHBOARD}/api/jobs/{identity}", token=token)
    return str(found.json().get("status", "")) if found.status == 200 else ""
