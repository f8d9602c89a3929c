"""Dashboard and alerts query exported metrics; alerts fire when they should, and each has a runbook entry."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from manifests import built, pods
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from cluster.observability import prometheus
from infra.local_kubernetes.manifests import K8S, ROOT

MONITORING = K8S / "monitoring"
# Exported by nodes with GPUs only; a test below compares them with Ray's table of its node metrics.
GPU = {"ray_node_gpus_utilization": {"GpuIndex"}, "ray_node_gram_used": {"GpuIndex"}}
ADDED = {"instance", "pod", "ray_io_cluster", "ray_io_group"}  # by Prometheus and the PodMonitor's podTargetLabels
OURS = {f"ray_{name}": set(labels) for name, (_, labels) in (prometheus.COUNTERS | prometheus.GAUGES).items()}


def dashboard() -> dict[str, Any]:
    return json.loads((MONITORING / "dashboard.json").read_text())


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["spec"]["groups"]
    return group["rules"]


def queries() -> dict[str, str]:
    """Return every query by its alert or panel, with Grafana's variables expanded."""
    expressions = {rule["alert"]: rule["expr"] for rule in rules()}
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            expressions[f"{panel['title']} {target['refId']}"] = target["expr"]
    variables = {"$__range": "6h", "$cluster": ".*", "$run": ".*"}
    return {name: re.sub(r"\$\w+", lambda match: variables[match[0]], expr) for name, expr in expressions.items()}


def queried(expr: str) -> dict[str, set[str]]:
    """Return the metrics of a query, with the labels that filter each."""
    names = re.findall(r"\b((?:ray_|up\b)\w*)(?:\{([^}]*)\})?", re.sub(r"\b(by|on) \([^)]*\)", "", expr))
    metrics: dict[str, set[str]] = {}
    for name, selector in names:
        if name not in ADDED:
            metrics.setdefault(name, set()).update(re.findall(r"(\w+)\s*[=!]", selector))
    return metrics


def grouped(expr: str) -> set[str]:
    """Return the labels that a query groups or joins by."""
    return {label for by in re.findall(r"\b(?:by|on) \(([^)]*)\)", expr) for label in re.split(r",\s*", by)}


@pytest.fixture(scope="module")
def exported(scrape: Callable[[], str]) -> dict[str, set[str]]:
    """Metrics of a running node with their labels, after an actor has set all of this project's."""

    @ray.remote
    class Exporter:
        def export(self) -> None:
            for _ in range(15):  # gauges are forgotten
                for name, (_, labels) in prometheus.COUNTERS.items():
                    prometheus.increment(name, 1.0, **dict.fromkeys(labels, "x"))
                for name, (_, labels) in prometheus.GAUGES.items():
                    prometheus.set_gauge(name, 1.0, **dict.fromkeys(labels, "x"))
                time.sleep(2)

    exporter = Exporter.remote()
    metrics, done = dict[str, set[str]](), exporter.export.remote()
    while ray.wait([done], timeout=1)[1]:
        for name, labels in re.findall(r"^(\w+)\{(.*)\} ", scrape(), re.MULTILINE):
            metrics.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    ray.get(done)
    return metrics


@pytest.mark.ray
def test_every_queried_metric_and_label_is_exported(exported: dict[str, set[str]]) -> None:
    known = exported | GPU | {"up": {"job"}}
    unknown = []
    for name, expr in queries().items():
        metrics = queried(expr)
        assert metrics, name
        labels = set.union(ADDED, *(known.get(metric, set()) for metric in metrics))
        unknown += [(name, metric) for metric in metrics if metric not in known]
        unknown += [(name, label) for label in set.union(grouped(expr), *metrics.values()) - labels]
    assert unknown == []


@pytest.mark.ray
def test_every_metric_of_ours_is_exported_with_its_labels_and_shown(exported: dict[str, set[str]]) -> None:
    for name, labels in OURS.items():
        assert labels <= exported[name], name
    assert set(OURS) <= {metric for expr in queries().values() for metric in queried(expr)}


def test_gpu_metrics_are_rays() -> None:
    assert {name.removeprefix("ray_") for name in GPU} <= set(METRICS_GAUGES)


def test_every_metric_of_ours_is_set_by_the_code() -> None:
    code = "".join(p.read_text() for p in (ROOT / "cluster").rglob("*.py") if p.name != "prometheus.py")
    assert [name for name in (*prometheus.COUNTERS, *prometheus.GAUGES) if f'"{name}"' not in code] == []


@pytest.mark.k8s
def test_prometheus_scrapes_the_metrics_port_of_ray_pods() -> None:
    monitor = yaml.safe_load((MONITORING / "scrape.yaml").read_text())["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    ray_pods = [pod for pod in pods("cloud") if pod.by_operator]
    assert ray_pods
    for pod in pods("cloud"):
        selected = monitor["selector"]["matchLabels"].items() <= pod.labels.items()
        assert selected == (pod in ray_pods), pod.where
        ports = {p["name"]: p["containerPort"] for p in pod.spec["containers"][0].get("ports", [])}
        assert not selected or ports[endpoint["port"]] == 8080, pod.where
    dropped = endpoint["metricRelabelings"][0]["regex"]
    queried_metrics = {metric for expr in queries().values() for metric in queried(expr)}
    assert [metric for metric in queried_metrics if re.fullmatch(dropped, metric)] == []


@pytest.mark.k8s
def test_monitoring_builds_beside_the_overlays() -> None:
    manifests = {m["kind"]: m for m in built("../monitoring")}
    assert set(manifests) == {"ConfigMap", "PodMonitor", "PrometheusRule"}
    assert {m["metadata"]["namespace"] for m in manifests.values()} == {"scene"}
    assert json.loads(manifests["ConfigMap"]["data"]["dashboard.json"]) == dashboard()
    assert manifests["ConfigMap"]["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_alerts_are_explained_in_the_runbook() -> None:
    text = (K8S / "OPERATING.md").read_text()
    entries = set(re.findall(r"^### (Scene\w+)$", text, re.MULTILINE))
    assert entries == {rule["alert"] for rule in rules()}
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")


# ---- promtool --------------------------------------------------------------------------------------------------------


@functools.cache
def promtool() -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool not found, which checks queries and alerts: it comes with Prometheus")
    return program


def run_promtool(*args: str) -> None:
    result = subprocess.run([promtool(), *args], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_promtool_accepts_every_query(tmp_path: Path) -> None:
    records = [{"record": f"panel:{n}", "expr": expr} for n, expr in enumerate(queries().values())]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": [*rules(), *records]}]}))
    run_promtool("check", "rules", str(path))
    path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": [{"record": "a", "expr": "sum by (run"}]}]}))
    with pytest.raises(AssertionError):
        run_promtool("check", "rules", str(path))


POD = 'ray_io_cluster="scene"'
UNITS = "ray_scene_prepare_units_total"
RUNNING = f'ray_tasks{{{POD}, Name="Map(process_unit_or_error)", State="RUNNING"}}'
WORKERS = f'ray_actors{{{POD}, Name="RayTrainWorker", State="ALIVE"}}'
NODE = f'{POD}, instance="10.0.0.1:8080"'
# (alert, series in which it fires, series in which it does not): two hours, one value per minute
CASES: list[tuple[str, dict[str, str], dict[str, str]]] = [
    (
        "SceneTrainingStalled",
        {WORKERS: "2x120", f"ray_scene_train_clips_total{{{POD}}}": "0+64x60 3840x60"},
        {WORKERS: "2x120", f"ray_scene_train_clips_total{{{POD}}}": "0+64x120"},
    ),
    (
        "SceneTrainingStalled",
        {WORKERS: "2x120", f"ray_scene_train_clips_total{{{POD}}}": "64x120"},
        {WORKERS: "2x120", 'ray_scene_train_clips_total{ray_io_cluster="other"}': "64x120"},  # a sweep's workers
    ),
    (
        "SceneTrainingRestarts",
        {'ray_scene_train_start_time_seconds{run="gan"}': "1x70 " + " ".join(f"{n}x9" for n in range(2, 7))},
        {'ray_scene_train_start_time_seconds{run="gan"}': "1x70 2x49"},
    ),
    (
        "SceneTrainingWaits",
        {'ray_scene_train_wait_seconds_total{run="gan", rank="1"}': "0+30x120"},
        {f'ray_scene_train_wait_seconds_total{{run="gan", rank="{rank}"}}': "0+15x120" for rank in range(3)},
    ),
    (
        "SceneGpusIdle",
        {f'ray_node_gpus_utilization{{{NODE}, GpuIndex="0"}}': "1x120"},
        {
            f'ray_node_gpus_utilization{{{NODE}, GpuIndex="0"}}': "1x120",
            f'ray_node_gpus_utilization{{{NODE}, GpuIndex="1"}}': "90x120",
        },
    ),
    (
        "ScenePrepareStalled",
        {RUNNING: "4x120", f"{UNITS}{{{POD}}}": "7x120"},
        {RUNNING: "4x120", f"{UNITS}{{{POD}}}": "0+1x120"},
    ),
    ("ScenePrepareStalled", {RUNNING: "4x120"}, {f"{UNITS}{{{POD}}}": "7x120"}),
    (
        "SceneVideosRejected",
        {f'{UNITS}{{run="a", outcome="clips"}}': "0+1x120", f'{UNITS}{{run="a", outcome="no_clips"}}': "0+9x120"},
        {f'{UNITS}{{run="a", outcome="clips"}}': "0+6x120", f'{UNITS}{{run="a", outcome="no_clips"}}': "0+4x120"},
    ),
    (
        "SceneDecodersDie",
        {f'{UNITS}{{run="a", outcome="clips"}}': "0+9x120", f'{UNITS}{{run="a", outcome="quarantined"}}': "0+1x120"},
        {f'{UNITS}{{run="a", outcome="clips"}}': "0+99x120", f'{UNITS}{{run="a", outcome="quarantined"}}': "0+1x120"},
    ),
    (
        "SceneSpilling",
        {f'ray_object_store_memory{{{NODE}, Location="SPILLED"}}': "6e9x120"},
        {f'ray_object_store_memory{{{NODE}, Location="MMAP_SHM"}}': "6e9x120"},
    ),
    (
        "SceneDiskNearlyFull",
        {f"ray_node_disk_utilization_percentage{{{NODE}}}": "90x120"},
        {f"ray_node_disk_utilization_percentage{{{NODE}}}": "80x120"},
    ),
    (
        "SceneMemoryNearlyFull",
        {f"ray_node_mem_used{{{NODE}}}": "94x120", f"ray_node_mem_total{{{NODE}}}": "100x120"},
        {f"ray_node_mem_used{{{NODE}}}": "90x120", f"ray_node_mem_total{{{NODE}}}": "100x120"},
    ),
    (
        "SceneNodeSilent",
        {'up{job="scene/ray", pod="a"}': "1x60 0x60"},
        {'up{job="scene/ray", pod="a"}': "1x60 0x2 1x58"},
    ),
]


def test_every_alert_has_a_case() -> None:
    assert {name for name, _, _ in CASES} == {rule["alert"] for rule in rules()}


def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "scene", "rules": rules()}]}))

    def case(alert: str, series: dict[str, str], samples: list[dict[str, Any]]) -> dict[str, Any]:
        fires = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})'
        inputs = [{"series": name, "values": values} for name, values in series.items()]
        tests = [{"expr": fires, "eval_time": "119m", "exp_samples": samples}]
        return {"interval": "1m", "input_series": inputs, "promql_expr_test": tests}

    tests = [case(alert, bad, [{"labels": "{}", "value": 1}]) for alert, bad, _ in CASES]
    tests += [case(alert, good, []) for alert, _, good in CASES]
    spec = tmp_path / "test.yaml"
    spec.write_text(yaml.safe_dump({"rule_files": [str(path)], "evaluation_interval": "1m", "tests": tests}))
    run_promtool("test", "rules", str(spec))
