"""Behavior of KubeRay's operator (1.7) for a RayCluster and a RayJob: commands, environment, services, restarts.

Not included: its autoscaler, its init container that waits for the head (workers are started when the head is ready),
and the timing of its probes (the requests made here are the probes').
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from infra.local_kubernetes.http_probe import http, page
from infra.local_kubernetes.manifests import Manifest, number
from infra.local_kubernetes.pods import Kubelet, Pod, PodFailedError

GCS, DASHBOARD, AGENT, METRICS = 6379, 8265, 52365, 8080
# Scaled to one machine: by default Ray would reserve a third of the machine's memory for the objects of every node.
OBJECT_STORE_BYTES = 300_000_000
MAX_REPLACED = 5
TIMEOUT_S, POLL_S = 1200.0, 2.0  # long, because the machine may be busy


def wait_until(
    condition: str, done: Callable[[], object], *, alive: Sequence[Pod] = (), timeout_s: float = TIMEOUT_S
) -> None:
    """Wait until `done()` is true.

    Args:
        condition: Description of what is waited for, for error messages.
        done: Called every two seconds.
        alive: Pods that must keep running.
        timeout_s: Seconds to wait.

    Raises:
        PodFailedError: The time ran out, or one of the pods `alive` ended.
    """
    for _ in range(int(timeout_s / POLL_S)):  # not by the clock: the machine may have been suspended
        if done():
            return
        for pod in alive:
            if not pod.alive():
                raise PodFailedError(f"{pod.name} ended while waiting until {condition}: {last_lines(pod)}")
        time.sleep(POLL_S)
    raise PodFailedError(f"waited {timeout_s:.0f} s until {condition}")


def last_lines(pod: Pod, count: int = 5) -> str:
    """Return the last lines of a pod's log on one line, with the path of the log."""
    return " | ".join(line for line in pod.text().splitlines()[-count:] if line.strip()) + f" ({pod.log})"


@dataclass
class RayNodes:
    """Pods of a RayCluster: the head and its workers."""

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
        """DNS name of the head's service."""
        return f"{self.name}-head-svc.scene.svc.cluster.local"

    def group(self, name: str) -> Manifest:
        """Return the specification of a worker group."""
        (group,) = [g for g in self.spec["workerGroupSpecs"] if g["groupName"] == name]
        return group

    def add(self, group_name: str) -> Pod:
        """Start one more worker of a group."""
        self.workers.append(self._start(group_name))
        return self.workers[-1]

    def _start(self, group_name: str) -> Pod:
        """Start a worker pod."""
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
        """Return the variables that the operator adds to a worker's environment."""
        return ray_environment(self.kubelet, self.spec, self.name, address) | {"RAY_NODE_TYPE_NAME": group}

    def wait_for_workers(self) -> None:
        """Wait until each worker's readiness probe succeeds, and replace workers that end.

        A worker may end because Ray gives a node only 30 s to start.

        Raises:
            PodFailedError: The time ran out, or more than `MAX_REPLACED` workers ended.
        """

        def ready() -> bool:
            for index, pod in enumerate(self.workers):
                if not pod.alive():
                    if self.replaced == MAX_REPLACED:
                        raise PodFailedError(
                            f"{pod.name} ended, and {MAX_REPLACED} workers before it: {last_lines(pod)}"
                        )
                    self.replaced += 1
                    self.workers[index] = self._start(pod.address.labels["ray.io/group"])
            return all(map(worker_ready, self.workers))

        wait_until("workers are ready", ready, alive=[self.head])


def head_ready(pod: Pod) -> bool:
    """Run the operator's readiness probe of a head."""
    return worker_ready(pod) and "success" in page(pod, f"http://localhost:{DASHBOARD}/api/gcs_healthz")


def worker_ready(pod: Pod) -> bool:
    """Run the operator's readiness probe of a worker."""
    return "success" in page(pod, f"http://localhost:{AGENT}/api/local_raylet_healthz")


@contextmanager
def ray_nodes(kubelet: Kubelet, name: str, spec: Manifest) -> Iterator[RayNodes]:
    """Run a RayCluster's head and the workers of its `replicas` for the duration of the block, ready at its start."""
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
        nodes = RayNodes(name, spec, kubelet, pod, _stack=stack)
        wait_until("the head is ready", lambda: head_ready(pod), alive=[pod])
        for group in spec["workerGroupSpecs"]:
            for _ in range(group["replicas"]):
                nodes.add(group["groupName"])
        nodes.wait_for_workers()
        yield nodes


def ray_start(group: Manifest, address: str) -> list[str]:
    """Return the command of a Ray pod: `ray start` with the group's parameters, labels and resource limits.

    Args:
        group: Specification of the head group or a worker group.
        address: Address of the head (host:port); empty for the head itself.
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
    """Return the variables that the operator adds to the environment of a Ray container."""
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
    """Return the variables of token authentication, with the token of the secret that `authOptions` names."""
    options = spec["authOptions"]
    return {
        "RAY_AUTH_MODE": options["mode"],
        "RAY_AUTH_TOKEN": kubelet.namespace.secrets[options["secretName"]]["auth_token"],
    }


@contextmanager
def submitter(nodes: RayNodes, job: Manifest, submission_id: str, overrides: Sequence[str]) -> Iterator[Pod]:
    """Run a RayJob's submitter pod, which submits the entrypoint and follows its output, for the duration of the block.

    Args:
        nodes: Cluster of the job.
        job: Manifest of the RayJob.
        submission_id: Id of the job in Ray's jobs API.
        overrides: Settings appended to the entrypoint, which reduce the size of the job.
    """
    spec = job["spec"]
    address = f"http://{nodes.service}:{DASHBOARD}"
    runtime_env = ["--runtime-env-json", shlex.quote(spec["runtimeEnvYAML"])] if "runtimeEnvYAML" in spec else []
    health = f"python -c \"import urllib.request as r; r.urlopen('{address}/api/gcs_healthz', timeout=5)\""
    submit = ["ray job submit --address", address, "--no-wait", *runtime_env, "--submission-id", submission_id, "--"]
    script = (
        f"until {health} >/dev/null 2>&1 ; do echo waiting for {address} ; sleep 2 ; done ; "
        f"if ! ray job status --address {address} {submission_id} >/dev/null 2>&1 ; "
        f"then {' '.join(submit)} {spec['entrypoint'].strip()} {' '.join(overrides)} ; fi ; "
        f"ray job logs --address {address} --follow {submission_id}"
    )
    template = spec["submitterPodTemplate"]
    extra = {
        "PYTHONUNBUFFERED": "1",
        "RAY_DASHBOARD_ADDRESS": address,
        "RAY_JOB_SUBMISSION_ID": submission_id,
        "RAY_USAGE_STATS_ENABLED": "0",
        **auth_environment(nodes.kubelet, spec["rayClusterSpec"]),
    }
    with nodes.kubelet.pod(
        f"{submission_id}-submitter",
        template,
        template["metadata"]["labels"],
        command=["/bin/bash", "-ce", "--", script],
        extra=extra,
    ) as pod:
        yield pod


def job_status(nodes: RayNodes, client: Pod, submission_id: str) -> str:
    """Query a job's status from the jobs API, as the operator does; return "" if it does not answer."""
    token = auth_environment(nodes.kubelet, nodes.spec)["RAY_AUTH_TOKEN"]
    response = http(client, f"http://{nodes.service}:{DASHBOARD}/api/jobs/{submission_id}", token=token)
    return str(response.json().get("status", "")) if response.status == 200 else ""
