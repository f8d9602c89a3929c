"""Rules for every manifest: users, capabilities, resources, allowed connections, and no secret in any file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from manifests import OVERLAYS, Pod, built, of_kind, pods, ray_clusters

from infra.local_kubernetes import policies
from infra.local_kubernetes.kubectl_server import Reply, run, secret_reply, without_namespace
from infra.local_kubernetes.manifests import K8S, ROOT, Manifest, iter_values

pytestmark = pytest.mark.k8s
per_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


@per_overlay
def test_pods_run_unprivileged(overlay: str) -> None:
    """Check the requirements of the level `restricted`; the operator's init containers copy their pod's settings."""
    for pod in pods(overlay):
        pod_context = pod.spec["securityContext"]
        assert pod_context["runAsNonRoot"] is True, pod.where
        assert pod_context["runAsUser"] > 0, pod.where
        assert pod_context["seccompProfile"] == {"type": "RuntimeDefault"}, pod.where
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod.spec), pod.where
        assert not [v for v in pod.spec.get("volumes", []) if "hostPath" in v], pod.where
        for container in pod.containers():
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, pod.where
            assert context["capabilities"] == {"drop": ["ALL"]}, pod.where
            assert not context.get("privileged"), pod.where
            assert context.get("runAsUser", 1) > 0, pod.where


@per_overlay
def test_autoscaler_runs_unprivileged(overlay: str) -> None:
    for name, spec in ray_clusters(overlay):
        if spec.get("enableInTreeAutoscaling"):
            context = spec["autoscalerOptions"]["securityContext"]
            assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}, name


@per_overlay
def test_namespace_enforces_the_restricted_level(overlay: str) -> None:
    (namespace,) = of_kind(overlay, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for m in built(overlay):
        assert m["kind"] == "Namespace" or m["metadata"]["namespace"] == namespace["metadata"]["name"]


@per_overlay
def test_only_the_heads_account_has_a_token(overlay: str) -> None:
    accounts = {m["metadata"]["name"]: m for m in of_kind(overlay, "ServiceAccount")}
    for pod in pods(overlay):
        account = accounts.get(pod.spec.get("serviceAccountName", ""), {})
        mounts = pod.spec.get("automountServiceAccountToken", account.get("automountServiceAccountToken", True))
        assert mounts is (pod.by_operator == "head"), pod.where


@per_overlay
def test_containers_state_requests_and_limits(overlay: str) -> None:
    for pod in pods(overlay):
        for container in pod.containers():
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert {"cpu", "memory"} <= set(requests) & set(limits), pod.where
            assert requests["memory"] == limits["memory"], f"{pod.where}: Ray sizes itself by the limit"
            assert requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu"), pod.where


@per_overlay
def test_servers_are_probed(overlay: str) -> None:
    """Check for probes; the operator adds them to Ray's containers, if these have none."""
    for pod in pods(overlay):
        for container in pod.containers(init=False):
            probes = {"readinessProbe", "livenessProbe"} & set(container)
            expected = set() if pod.by_operator or "submitter" in pod.where else {"readinessProbe", "livenessProbe"}
            assert probes == expected, pod.where


@per_overlay
def test_images_have_a_version_and_no_registry_of_ours(overlay: str) -> None:
    for pod in pods(overlay):
        for container in pod.containers():
            name, _, tag = container["image"].partition(":")
            assert re.fullmatch(r"\d[\w.-]*", tag), (pod.where, container["image"])
            assert not re.match(r"[^/]*[.:][^/]*/", name), (pod.where, container["image"])


@per_overlay
def test_nodes_have_time_to_save(overlay: str) -> None:
    for pod in pods(overlay):
        if pod.by_operator:
            assert pod.spec["terminationGracePeriodSeconds"] >= 90, f"{pod.where}: Ray drains for 30 s first"


@per_overlay
def test_quota_has_room_for_the_standing_cluster_and_each_job(overlay: str) -> None:
    (quota,) = [m["spec"]["hard"] for m in of_kind(overlay, "ResourceQuota")]
    sizes = {name: _demand(spec) for name, spec in ray_clusters(overlay)}
    rest = [_pod_demand(p) for p in pods(overlay) if not p.by_operator and "submitter" not in p.where]
    base = {key: sum(d[key] for d in rest) for key in rest[0]}
    for name, demand in sizes.items():
        for key, total in demand.items():
            assert total + base[key] <= _number(quota[key]), (name, key)


def _demand(spec: Manifest) -> dict[str, float]:
    """Sum the demand of a cluster with each group at its minimum size, at least one node."""
    groups = [(1, spec["headGroupSpec"])] + [(max(1, g["minReplicas"]), g) for g in spec["workerGroupSpecs"]]
    each = [(n, _pod_demand(Pod("", g["template"]))) for n, g in groups]
    return {key: sum(n * demand[key] for n, demand in each) for key in each[0][1]}


def _pod_demand(pod: Pod) -> dict[str, float]:
    demand = {"requests.cpu": 0.0, "limits.memory": 0.0, "requests.nvidia.com/gpu": 0.0}
    for container in pod.containers(init=False):
        for key in demand:
            section, _, resource = key.partition(".")
            demand[key] += _number(container["resources"][section].get(resource, "0"))
    return demand


def _number(text: str) -> float:
    units = {"m": 1e-3, "": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    value, unit = re.fullmatch(r"([\d.]+)(\w*)", text).groups()  # type: ignore[union-attr]
    return float(value) * units[unit]


# ---- allowed connections ---------------------------------------------------------------------------------------------


def is_reachable(overlay: str, source: Pod, target: Pod, port: int) -> bool:
    """Return True if the policies let one pod connect to another's port."""
    manifests = of_kind(overlay, "NetworkPolicy")
    return policies.is_reachable(manifests, source.labels, target.labels, port, namespace=source.namespace)


def _roles(overlay: str) -> dict[str, Pod]:
    names = {"Deployment mlflow": "mlflow", "StatefulSet postgres": "postgres", "StatefulSet s3": "s3"}
    names |= {"scene: head": "head", "scene: cpu-decode": "decode", "scene: gpu-train": "train"}
    names |= {"job train: submitter": "submitter"}
    return {names[p.where]: p for p in pods(overlay) if p.where in names}


@per_overlay
def test_pods_reach_what_they_need_and_nothing_else(overlay: str) -> None:
    ray = ("head", "decode", "train")
    allowed = {(a, b, port) for a in ray for b in ray for port in (6379, 8265, 8080, 10001, 5432, 5000, 9000)}
    allowed |= {(a, "mlflow", 5000) for a in ray} | {("mlflow", "postgres", 5432), ("submitter", "head", 8265)}
    allowed |= {(a, "s3", 9000) for a in (*ray, "mlflow")}
    roles = _roles(overlay)
    assert len(roles) >= 6
    allowed = {(a, b, port) for a, b, port in allowed if a in roles and b in roles}
    ports = (5000, 5432, 6379, 8080, 8265, 9000, 10001)
    reachable = {(a, b, p) for a in roles for b in roles for p in ports if is_reachable(overlay, roles[a], roles[b], p)}
    assert reachable == allowed


def _outsider(namespace: str, name: str) -> Pod:
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/component": "ray"}
    return Pod(f"{namespace}: {name}", {"metadata": {"labels": labels}}, namespace=namespace)


@per_overlay
def test_pods_of_other_namespaces_reach_the_jobs_api_or_the_metrics_and_nothing_else(overlay: str) -> None:
    outside = [_outsider("prometheus-system", "prometheus"), _outsider("prometheus-system", "grafana")]
    outside += [_outsider("elsewhere", "prometheus"), _outsider("kuberay-operator", "kuberay-operator")]
    roles, ports = _roles(overlay), (5000, 5432, 6379, 8080, 8265, 9000, 10001)
    reachable = {
        (a.where, b, p) for a in outside for b in roles for p in ports if is_reachable(overlay, a, roles[b], p)
    }
    allowed = {("prometheus-system: prometheus", b, 8080) for b in ("head", "decode", "train")}
    assert reachable == allowed | {("kuberay-operator: kuberay-operator", "head", 8265)}


@per_overlay
def test_everything_else_is_refused_both_ways(overlay: str) -> None:
    (deny,) = [m["spec"] for m in of_kind(overlay, "NetworkPolicy") if m["metadata"]["name"] == "deny-all"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert of_kind(overlay, "Ingress") == []
    for service in of_kind(overlay, "Service"):
        assert service["spec"].get("type", "ClusterIP") == "ClusterIP"
    for _, spec in ray_clusters(overlay):
        assert not {"serviceType", "enableIngress"} & set(spec["headGroupSpec"])


@per_overlay
def test_every_ingress_rule_names_its_peers(overlay: str) -> None:
    for m in of_kind(overlay, "NetworkPolicy"):
        for rule in m["spec"].get("ingress", []):
            assert rule["from"], m["metadata"]["name"]
            assert all(p.get("podSelector") or p.get("namespaceSelector") for p in rule["from"]), m["metadata"]["name"]


@per_overlay
def test_budgets_select_existing_pods(overlay: str) -> None:
    for m in of_kind(overlay, "PodDisruptionBudget"):
        assert [p for p in pods(overlay) if policies.matches(m["spec"]["selector"], p.labels)], m["metadata"]["name"]


# ---- secrets ---------------------------------------------------------------------------------------------------------

LOOKS_SECRET = re.compile(
    r"(?i)(-----BEGIN [A-Z ]*PRIVATE KEY|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_\w{20,}|\bxox[abp]-|\beyJ[\w-]{20,}\."
    r"|://[^/\s:@$]+:[^/\s@$]+@|(?:password|secret|token|access_key)[\w-]*\s*[:=]\s*['\"]?[A-Za-z0-9+/]{16,}['\"]?\s*$)",
    re.MULTILINE,
)


@pytest.mark.parametrize(
    "text",
    [
        "password: hunter2hunter2hunter2",
        "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
        "uri: postgresql://mlflow:letmein@postgres/mlflow",
        "-----BEGIN RSA PRIVATE KEY-----",
        "id: AKIAIOSFODNN7EXAMPLE",
    ],
)
def test_scanner_knows_a_secret(text: str) -> None:
    assert LOOKS_SECRET.search(text)


@pytest.mark.parametrize(
    "path", sorted(p for p in (ROOT / "infra").rglob("*") if p.is_file() and p.suffix != ".pyc"), ids=lambda p: p.name
)
def test_no_file_holds_a_secret(path: Path) -> None:
    assert not LOOKS_SECRET.search(path.read_text())


@per_overlay
def test_secrets_are_referenced_without_values(overlay: str) -> None:
    assert of_kind(overlay, "Secret") == []
    for m in built(overlay):
        for path, value in iter_values(m):
            if isinstance(value, dict) and re.search(
                r"(?i)password|secret|token|key_id|auth_key", str(value.get("name"))
            ):
                text = str(value.get("value", ""))
                assert re.fullmatch(r'"?(\$\(\w+\),?)*"?', text), f"{m['kind']} {m['metadata']['name']}{path}"


def references(overlay: str) -> set[tuple[str, str]]:
    """Return (secret, key) of the secrets that the manifests refer to."""
    keys = set()
    for m in built(overlay):
        for _, value in iter_values(m):
            if isinstance(value, dict) and "secretKeyRef" in value:
                keys.add((value["secretKeyRef"]["name"], value["secretKeyRef"]["key"]))
            elif isinstance(value, dict) and "items" in value and "secretName" in value:
                keys |= {(value["secretName"], item["key"]) for item in value["items"]}
    return keys | {(spec["authOptions"]["secretName"], "auth_token") for _, spec in ray_clusters(overlay)}


def run_secrets(secrets: dict[str, dict[str, str]], log: Path, *, down: bool = False) -> int:
    """Run secrets.sh on a cluster that holds `secrets`; return its exit code."""

    def answer(words: list[str], text: str) -> Reply:
        reply = Reply(code=1) if down else secret_reply(secrets, without_namespace(words), text)
        assert reply is not None, words
        return reply

    return run(["bash", str(K8S / "secrets.sh")], answer, log)


def test_secrets_script_creates_every_referenced_secret_and_prints_none(tmp_path: Path) -> None:
    made: dict[str, dict[str, str]] = {}
    log = tmp_path / "log"
    assert run_secrets(made, log) == 0, log.read_text()
    created = {(name, key) for name, data in made.items() for key in data}
    referenced = {reference for overlay in OVERLAYS for reference in references(overlay)}
    assert referenced == created
    values = [value for data in made.values() for value in data.values() if value != "admin"]
    assert len(set(values)) == len(values)
    assert min(map(len, values)) >= 64
    assert "secret/ray-token created" in log.read_text()
    assert not [value for value in values if value in log.read_text()]
    database = f"postgresql://mlflow:{made['postgres']['password']}@postgres:5432/mlflow"
    assert made["mlflow-server"]["backend-store-uri"] == database
    assert f"database_uri = {database}\n" in made["mlflow-server"]["basic_auth.ini"]


def test_secrets_script_keeps_existing_secrets(tmp_path: Path) -> None:
    made: dict[str, dict[str, str]] = {}
    run_secrets(made, tmp_path / "log")
    before = dict(made)
    del made["mlflow-server"]
    assert run_secrets(made, tmp_path / "log") == 0
    assert {name for name in before if made[name] != before[name]} == {"mlflow-server"}
    assert before["postgres"]["password"] in made["mlflow-server"]["backend-store-uri"]


def test_secrets_script_without_a_cluster_makes_nothing(tmp_path: Path) -> None:
    made: dict[str, dict[str, str]] = {}
    assert run_secrets(made, tmp_path / "log", down=True) != 0
    assert not made
