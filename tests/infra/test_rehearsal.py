"""What the rehearsal makes of manifests, as Kubernetes and KubeRay would; and its network, where root may make one."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from manifests import named, of_kind

from infra.rehearsal.guide import block
from infra.rehearsal.manifests import Namespace, expand, number
from infra.rehearsal.network import network
from infra.rehearsal.operator import ray_start, wait_until
from infra.rehearsal.pods import Pod, kubelet, machine_disk, missing_programs
from infra.rehearsal.policies import open_ports

pytestmark = pytest.mark.k8s
RAY, POSTGRES, MLFLOW = ({"app.kubernetes.io/component": name} for name in ("ray", "postgres", "mlflow"))


@pytest.mark.parametrize(
    ("text", "value"), [("3Gi", 3 * 2**30), ("500m", 1), ("1500m", 2), ("2", 2), ("1.5k", 1500), ("32Mi", 2**25)]
)
def test_quantities_are_read_as_kuberay_reads_them(text: str, value: int) -> None:
    assert number(text) == value


def test_variables_are_filled_in_as_kubernetes_does() -> None:
    assert expand('"$(A),$(B)" $A $(C)', {"A": "1", "B": "2"}) == '"1,2" $A $(C)'


def test_environment_takes_settings_then_secrets_then_what_names_them() -> None:
    secrets = {"s3": {"access-key-id": "the key", "secret-access-key": "the secret"}}
    container = named("local", "StatefulSet", "s3")["spec"]["template"]["spec"]["containers"][0]
    found = Namespace(of_kind("local", "ConfigMap"), secrets).environment(container)
    assert found["RCLONE_AUTH_KEY"] == '"the key,the secret"'


def test_ray_start_has_the_groups_limits_labels_and_own_parameters() -> None:
    spec = named("local", "RayJob", "train")["spec"]["rayClusterSpec"]
    head = ray_start(spec["headGroupSpec"], "")[-1]
    assert "ray start --head " in head
    assert "--num-cpus=0 " in head + " "
    worker = shlex.split(ray_start(spec["workerGroupSpecs"][0], "head:6379")[-1])
    limits = {"--num-cpus=1", f"--memory={3 * 2**30}", "--labels=scene-role=train", "--address=head:6379", "--block"}
    assert limits <= set(worker)
    assert "--object-spilling-directory=/spill" in worker


def test_open_ports_are_all_some_or_none() -> None:
    policies = of_kind("local", "NetworkPolicy")
    assert open_ports(policies, RAY, RAY) is None
    assert open_ports(policies, MLFLOW, POSTGRES) == {5432}
    assert open_ports(policies, RAY, POSTGRES) == set()


def test_guide_commands_are_those_of_the_page() -> None:
    assert "8265" in block(3)
    assert "fsspec" in block(4)
    assert "fill" not in block(4)
    assert "python -m jobs.submit" in block(5)
    assert ["mlflow" in line for line in block(7).splitlines()] == [True, True]


LISTEN = """
import socket, sys
server = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
while True:
    server.accept()[0].close()
"""
CALL = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)"


def test_router_passes_what_policies_allow_and_remembers_what_they_refuse() -> None:
    if os.geteuid() or missing_programs():
        pytest.skip("network namespaces need root, iproute2 and nftables")
    inside = ["nsenter", "--net=/run/netns/{}"]

    def run(place: str, *words: str) -> list[str]:
        return [word.format(place) for word in inside] + [sys.executable, *words]

    with (
        network(of_kind("local", "NetworkPolicy")) as net,
        net.address("mlflow", MLFLOW) as mlflow,
        net.address("postgres", POSTGRES) as postgres,
        net.address("ray", RAY) as ray,
    ):
        servers = []
        for port in (5432, 5433):
            command = run(postgres.namespace, "-c", LISTEN, str(port))
            servers.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        try:
            for server in servers:
                assert server.stdout
                assert server.stdout.readline() == b"ready\n"
            passes = {}
            for source in (mlflow, ray):
                for port in (5432, 5433):
                    call = run(source.namespace, "-c", CALL, postgres.ip, str(port))
                    passes[source.name, port] = subprocess.run(call, capture_output=True, check=False).returncode == 0
        finally:
            for server in servers:
                server.kill()
                server.wait()
        assert passes == {("mlflow", 5432): True, ("mlflow", 5433): False, ("ray", 5432): False, ("ray", 5433): False}
        refused = {(mlflow.ip, postgres.ip, 5433), (ray.ip, postgres.ip, 5432), (ray.ip, postgres.ip, 5433)}
        assert net.refused() == refused
        assert net.refused() == set()
    assert net.router not in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


SCRIPT = """
trap 'echo asked to end; exit 3' TERM
id -u; id -G; hostname; pwd; echo "$GREETING"; grep CapEff /proc/self/status
touch /data/mine && echo wrote; touch /srv/scene/x /usr/x 2>/dev/null || echo refused; [ -e /etc/shadow ] || echo hidden
sleep 1000 & echo ready; wait
"""


@pytest.fixture
def a_pod(tmp_path: Path) -> Iterator[Pod]:
    if os.geteuid() or missing_programs():
        pytest.skip("pods need root, iproute2, nftables and bubblewrap")
    container = {
        "name": "main",
        "image": "some-image:1",
        "command": ["sh", "-c", SCRIPT],
        "workingDir": "/data",
        "env": [{"name": "GREETING", "value": "hello"}],
        "resources": {"limits": {"memory": "64Mi"}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    spec = {
        "securityContext": {"runAsUser": 1000},
        "containers": [container],
        "volumes": [{"name": "data", "emptyDir": {}}],
    }
    disks = {"some-image": machine_disk(Path(sys.prefix), Path(sys.base_prefix))}
    with (
        network([]) as net,
        kubelet(Namespace([], {}), net, disks, tmp_path) as machine,
        machine.pod("one", {"spec": spec}, {}, services=["a-service"]) as pod,
    ):
        wait_until("it is ready", lambda: "ready" in pod.text(), alive=[pod], patience_s=60)
        yield pod
    assert not pod.alive()


def test_pod_has_its_user_volumes_and_names_and_nothing_of_the_machine(a_pod: Pod) -> None:
    lines = [
        "1000",
        "1000",
        "one",
        "/data",
        "hello",
        "CapEff:\t0000000000000000",
        "wrote",
        "refused",
        "hidden",
        "ready",
    ]
    assert a_pod.text().splitlines() == lines
    code, text = a_pod.run(["getent", "hosts", "a-service.scene.svc.cluster.local"])
    assert (code, text.split()[0]) == (0, a_pod.address.ip)
    assert a_pod.run(["sh", "-c", "ls /data; id -u; ps -A -o pid= | sort -n | head -1"]) == (0, "mine\n1000\n      1\n")


def test_pod_is_asked_to_end_and_takes_its_processes_with_it(a_pod: Pod) -> None:
    children = [int(n) for n in Path(f"/proc/{a_pod.main}/task/{a_pod.main}/children").read_text().split()]
    assert len(children) == 1
    assert a_pod.stop() < 10
    assert a_pod.text().endswith("asked to end\n")
    assert not Path(f"/proc/{children[0]}").exists()
    assert a_pod.run(["true"]) == (1, "one has ended")
