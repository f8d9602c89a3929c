"""What the rehearsal makes of manifests, as Kubernetes and KubeRay would; and its network, where root may make one."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest
from manifests import named, of_kind

from infra.rehearsal.manifests import Namespace, expand, number
from infra.rehearsal.network import network
from infra.rehearsal.operator import ray_start
from infra.rehearsal.pods import missing_programs
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
