"""Local run of the manifests: what Kubernetes and KubeRay derive from them, kubectl's stand-in, network and pods."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
from manifests import built, named, of_kind

from infra.local_kubernetes.control_plane import ControlPlane, copy
from infra.local_kubernetes.guide_runner import RESULTS, STEPS, TRIAL, script
from infra.local_kubernetes.kubectl_server import Reply, run, secret_reply, without_namespace
from infra.local_kubernetes.kuberay_operator import ray_start, wait_until
from infra.local_kubernetes.manifests import ROOT, Namespace, expand, number
from infra.local_kubernetes.network import Address, network
from infra.local_kubernetes.pods import Pod, PodFailedError, host_filesystem, kubelet, missing_programs
from infra.local_kubernetes.policies import open_ports
from infra.local_kubernetes.rayjobs import RUN
from infra.local_kubernetes.step_log import StepLog

pytestmark = pytest.mark.k8s
RAY, POSTGRES, MLFLOW = ({"app.kubernetes.io/component": name} for name in ("ray", "postgres", "mlflow"))


@pytest.mark.parametrize(
    ("text", "value"), [("3Gi", 3 * 2**30), ("500m", 1), ("1500m", 2), ("2", 2), ("1.5k", 1500), ("32Mi", 2**25)]
)
def test_quantities_are_parsed_as_by_kuberay(text: str, value: int) -> None:
    assert number(text) == value


def test_variables_are_expanded_as_in_kubernetes() -> None:
    assert expand('"$(A),$(B)" $A $(C)', {"A": "1", "B": "2"}) == '"1,2" $A $(C)'


def test_environment_expands_settings_and_secrets_in_order() -> None:
    secrets = {"s3": {"access-key-id": "the key", "secret-access-key": "the secret"}}
    container = named("local", "StatefulSet", "s3")["spec"]["template"]["spec"]["containers"][0]
    environment = Namespace(of_kind("local", "ConfigMap"), secrets).environment(container)
    assert environment["RCLONE_AUTH_KEY"] == '"the key,the secret"'


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


def test_guides_commands_become_one_script() -> None:
    text = script(RESULTS)
    assert re.findall(r"^kubectl step (\d)$", text, re.MULTILINE) == [str(step) for step in STEPS]
    assert "mlflow-client" in text
    assert "prints the password" not in text
    assert "jobs.submit" not in script(TRIAL - 1)
    subprocess.run(["bash", "-n", "-c", text], check=True)


def test_guides_second_step_runs_unchanged(tmp_path: Path) -> None:
    calls: list[list[str]] = []
    secrets: dict[str, dict[str, str]] = {}

    def answer(words: list[str], text: str) -> Reply:
        calls.append(without_namespace(words)[:2])
        return secret_reply(secrets, without_namespace(words), text) or Reply()

    log = tmp_path / "log"
    assert run(["bash", "-c", script(2)], answer, log, folder=ROOT) == 0, log.read_text()
    assert calls[:2] == [["step", "2"], ["create", "namespace"]]
    assert calls[-4:] == [["apply", "-k"], ["rollout", "status"], ["rollout", "status"], ["get", "raycluster"]]
    assert "ray-token" in secrets


def test_every_kubectl_call_of_the_guide_is_implemented(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run the guide's calls without pods; an unknown call raises an error."""
    done: list[str] = []
    for name in ("prepare", "train", "sweep"):
        monkeypatch.setitem(RUN, name, lambda *_, name=name: done.append(name))
    for name in ("start", "start_pod", "network_of"):
        monkeypatch.setattr(ControlPlane, name, lambda *_, name=name: done.append(name) or name)
    monkeypatch.setattr("infra.local_kubernetes.control_plane.copy", lambda *_: done.append("copy"))
    secrets = {
        "ray-token": {"auth_token": "a"},
        "s3": {"access-key-id": "b", "secret-access-key": "c"},
        "mlflow-client": {"password": "d"},
    }
    kube = SimpleNamespace(namespace=Namespace(deepcopy(list(built("local"))), secrets))
    control = ControlPlane(kube, tmp_path, StepLog(), ExitStack())  # type: ignore[arg-type]
    control.pods["dataset-loader"] = SimpleNamespace(alive=lambda: True, stop=lambda: 0.0)  # type: ignore[assignment]
    control.nodes = SimpleNamespace()  # type: ignore[assignment]
    for part in re.findall(r"kubectl ((?:'[^']*'|[^'|;&\n)])*)", script(RESULTS)):
        words = shlex.split(part, comments=True)
        if words[0] != "step":
            control.answer(words, "")
    forwarded = ["network_of"] * 2
    assert done == ["start", *forwarded, "start_pod", "copy", "prepare", "train", "sweep", "network_of"]
    with pytest.raises(PodFailedError, match="not implemented: kubectl get nodes"):
        control.answer(["get", "nodes"], "")


def test_waiting_for_a_suspended_rayjob_fails(tmp_path: Path) -> None:
    kube = SimpleNamespace(namespace=Namespace(deepcopy(list(built("local"))), {}))
    control = ControlPlane(kube, tmp_path, StepLog(), ExitStack())  # type: ignore[arg-type]
    wait = ["wait", "--for=jsonpath={.status.jobStatus}=SUCCEEDED", "rayjob/train", "--timeout=1h"]
    with pytest.raises(PodFailedError, match="kubectl waits for rayjob/train, which is suspended"):
        control.answer(wait, "")


def test_stand_in_prints_the_reply_and_ends_with_its_code(tmp_path: Path) -> None:
    calls = []

    def answer(words: list[str], text: str) -> Reply:
        calls.append((words, text))
        return Reply("yes\n", code=3)

    log = tmp_path / "log"
    assert run(["bash", "-c", "echo given | kubectl create -f -; kubectl get x || exit 4"], answer, log) == 4
    assert calls == [(["create", "-f", "-"], "given\n"), (["get", "x"], "")]
    assert log.read_text() == "yes\nyes\n"


def test_stand_ins_work_on_both_sides_of_a_pipe(tmp_path: Path) -> None:
    def answer(words: list[str], text: str) -> Reply:
        return Reply("made\n") if words[0] == "get" else Reply(f"took {text}")

    log = tmp_path / "log"
    assert run(["bash", "-c", "kubectl get x | kubectl create -f -"], answer, log) == 0
    assert log.read_text() == "took made\n"


def test_command_continues_after_a_stand_in_that_dies_during_a_call(tmp_path: Path) -> None:
    call = "import os, socket; s = socket.socket(socket.AF_UNIX); s.connect(os.environ['KUBECTL_SERVER'])"
    command = [sys.executable, "-c", f"{call}; s.close(); raise SystemExit(5)"]
    assert run(command, lambda *_: Reply(), tmp_path / "log") == 5


def test_idle_command_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.local_kubernetes.kubectl_server.IDLE_TIMEOUT_S", 0.3)
    with pytest.raises(PodFailedError, match="no call of kubectl"):
        run(["sleep", "1000"], lambda *_: Reply(), tmp_path / "log")


def test_exception_of_the_handler_ends_the_command(tmp_path: Path) -> None:
    def answer(_words: list[str], _text: str) -> Reply:
        raise PodFailedError("no")

    later = tmp_path / "later"
    with pytest.raises(PodFailedError, match="no"):
        run(["bash", "-c", f"kubectl get x; touch {later}"], answer, tmp_path / "log")
    time.sleep(0.5)
    assert not later.exists()


def test_inner_steps_are_counted_once() -> None:
    steps = StepLog()
    with steps.step("outer"), steps.step("inner"):
        time.sleep(0.05)
    (inner, inner_s, _), (outer, outer_s, _) = steps.rows
    assert (inner, outer) == ("inner", "outer")
    assert inner_s >= 0.05
    assert outer_s < inner_s


def inside(address: Address, *command: str) -> list[str]:
    """Return the command that runs another in a pod's network."""
    return ["nsenter", f"--net=/run/netns/{address.namespace}", *command]


LISTEN = """
import socket, sys
server = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
while True:
    server.accept()[0].close()
"""
CALL = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)"


def test_router_passes_allowed_connections_and_records_refused_ones() -> None:
    if os.geteuid() or missing_programs():
        pytest.skip("network namespaces need root, iproute2 and nftables")
    with (
        network(of_kind("local", "NetworkPolicy")) as net,
        net.address("mlflow", MLFLOW) as mlflow,
        net.address("postgres", POSTGRES) as postgres,
        net.address("ray", RAY) as ray,
    ):
        servers = []
        for port in (5432, 5433):
            command = inside(postgres, sys.executable, "-c", LISTEN, str(port))
            servers.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        try:
            for server in servers:
                assert server.stdout
                assert server.stdout.readline() == b"ready\n"
            passes = {}
            for source in (mlflow, ray):
                for port in (5432, 5433):
                    call = inside(source, sys.executable, "-c", CALL, postgres.ip, str(port))
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


GREET = """
import socket
server = socket.create_server(("127.0.0.1", 5432))
while True:
    client = server.accept()[0]
    client.sendall(b"hello " + client.recv(100))
    client.close()
"""
ASK = """
import socket
client = socket.create_connection(("localhost", 5432), timeout=5)
client.sendall(b"you")
print(client.recv(100).decode())
"""


def test_forwarded_port_reaches_the_pod_without_a_policy(tmp_path: Path) -> None:
    if os.geteuid() or missing_programs():
        pytest.skip("network namespaces need root, iproute2 and nftables")
    with (
        network(of_kind("local", "NetworkPolicy")) as net,
        net.address("laptop", {}) as laptop,
        net.address("postgres", POSTGRES) as postgres,
    ):
        server = subprocess.Popen(inside(postgres, sys.executable, "-c", GREET))
        ask = f"kubectl port-forward service/postgres 5432 & sleep 2; {shlex.join([sys.executable, '-c', ASK])}"
        try:
            assert (
                run(inside(laptop, "bash", "-c", ask), lambda *_: Reply(network=postgres.namespace), tmp_path / "log")
                == 0
            )
        finally:
            server.kill()
            server.wait()
        assert (tmp_path / "log").read_text() == "hello you\n"
        assert net.refused() == set()


SCRIPT = """
trap 'echo got SIGTERM; exit 3' TERM
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
    disks = {"some-image": host_filesystem(Path(sys.prefix), Path(sys.base_prefix))}
    with (
        network([]) as net,
        kubelet(Namespace([], {}), net, disks, tmp_path) as machine,
        machine.pod("one", {"spec": spec}, {}, services=["a-service"]) as pod,
    ):
        wait_until("it is ready", lambda: "ready" in pod.text(), alive=[pod], timeout_s=60)
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


def test_stopped_pod_gets_sigterm_and_its_processes_end(a_pod: Pod) -> None:
    children = [int(n) for n in Path(f"/proc/{a_pod.main}/task/{a_pod.main}/children").read_text().split()]
    assert len(children) == 1
    assert a_pod.stop() < 10
    assert a_pod.text().endswith("got SIGTERM\n")
    assert not Path(f"/proc/{children[0]}").exists()
    assert a_pod.run(["true"]) == (1, "one has ended")


def test_folder_is_copied_into_a_pod_as_its_user(a_pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "mine/set").mkdir(parents=True)
    (tmp_path / "mine/set/one").write_text("1")
    copy(tmp_path / "mine/set", a_pod, Path("/data/set"))
    assert a_pod.run(["sh", "-c", "cat /data/set/one; stat -c ' %u' /data/set/one"]) == (0, "1 1000\n")
    with pytest.raises(PodFailedError, match="copied to another name"):
        copy(tmp_path / "mine/set", a_pod, Path("/data/other"))
    with pytest.raises(PodFailedError, match="cannot be copied"):
        copy(tmp_path / "mine/set", a_pod, Path("/nowhere/set"))
