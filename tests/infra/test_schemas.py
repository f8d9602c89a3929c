"""Validation of every overlay's manifests by the schemas of KubeRay and Kubernetes, and by the operator's rules."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from manifests import OVERLAYS, built, named, of_kind, ray_clusters
from referencing import Registry, Resource

from infra.local_kubernetes.manifests import Manifest

pytestmark = [pytest.mark.k8s, pytest.mark.parametrize("overlay", OVERLAYS)]
KUBERNETES = "v1.32.0-local-strict"  # the oldest supported release; strict: no unknown fields


@functools.cache
def core_validator(kind: str, api_version: str) -> Draft202012Validator:
    """Return a validator with a schema from the data files of the package kubernetes-validate."""
    package = importlib.util.find_spec("kubernetes_validate")
    if package is None or not package.submodule_search_locations:
        pytest.skip("kubernetes-validate is not installed: pip install scene-dynamics[dev]")
    folder = Path(package.submodule_search_locations[0]) / "kubernetes-json-schema" / KUBERNETES
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)  # policy/v1 -> policy-v1, as files are named
    schema = json.loads((folder / f"{kind.lower()}-{group}.json").read_text())
    definitions = Resource.from_contents(json.loads((folder / "_definitions.json").read_text()))
    return Draft202012Validator(schema, registry=definitions @ Registry())


def crd_validator(shared: Path, kind: str) -> Draft202012Validator:
    """Return a validator with KubeRay's schema that rejects unknown fields, which an API server drops silently."""
    return _crd_validator(shared / "crds" / f"ray.io_{kind.lower()}s.yaml")


@functools.cache
def _crd_validator(path: Path) -> Draft202012Validator:
    if not path.exists():
        pytest.skip(f"KubeRay's schemas not found at {path}")
    (version,) = [v for v in yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]["versions"] if v["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object"}
    return Draft202012Validator(_closed(schema))


def _closed(schema: Any) -> Any:
    """Make objects that list their fields reject all others."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    is_schema = isinstance(closed.get("properties"), dict) and closed.get("type") == "object"
    if is_schema and not closed.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    if closed.get("x-kubernetes-int-or-string"):
        closed.pop("anyOf", None)
        closed["type"] = ["integer", "string"]
    return closed


def schema_errors(validator: Draft202012Validator, manifest: Manifest) -> list[str]:
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in validator.iter_errors(manifest)]


def test_manifest_fits_its_schema(overlay: str, shared: Path) -> None:
    errors = {}
    for m in built(overlay):
        is_ray = m["apiVersion"].startswith("ray.io/")
        validator = crd_validator(shared, m["kind"]) if is_ray else core_validator(m["kind"], m["apiVersion"])
        if messages := schema_errors(validator, m):
            errors[f"{m['kind']} {m['metadata']['name']}"] = messages
    assert errors == {}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec/headGroupSpec/template/spec/containers/0/imagee", "x"),  # a typo
        ("spec/workerGroupSpecs/0/minReplicas", "one"),
        ("spec/authOptions/mode", "none"),
    ],
)
def test_schema_check_finds_an_error(overlay: str, shared: Path, path: str, value: Any) -> None:
    broken = copy.deepcopy(named(overlay, "RayCluster", "scene"))
    parent: Any = broken
    *parents, last = path.split("/")
    for key in parents:
        parent = parent[int(key) if isinstance(parent, list) else key]
    parent[last] = value
    assert len(schema_errors(crd_validator(shared, "RayCluster"), broken)) == 1


def test_core_schema_check_finds_an_error(overlay: str) -> None:
    broken = copy.deepcopy(named(overlay, "Deployment", "mlflow"))
    broken["spec"]["template"]["spec"]["container"] = []
    assert schema_errors(core_validator("Deployment", "apps/v1"), broken)


# ---- validation by KubeRay's operator (its utils/validation.go, release 1.7) -----------------------------------------


def test_operator_accepts_the_jobs(overlay: str) -> None:
    for job in of_kind(overlay, "RayJob"):
        spec = job["spec"]
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", job["metadata"]["name"])
        assert spec["shutdownAfterJobFinishes"], "to be suspended, and for Kueue"
        assert spec["suspend"], "applying an overlay must not start its jobs"
        assert "deletionStrategy" not in spec, "excludes shutdownAfterJobFinishes"
        assert "clusterSelector" not in spec, "excludes backoffLimit and suspend"
        assert spec["submissionMode"] == "K8sJobMode", "fails with its head, so that backoffLimit brings a new one"
        assert spec["backoffLimit"] > 0
        assert spec["submitterPodTemplate"]["spec"]["restartPolicy"] in ("Never", "OnFailure")


def test_operator_accepts_the_clusters(overlay: str) -> None:
    for name, spec in ray_clusters(overlay):
        assert spec["authOptions"]["mode"] == "token", name
        assert tuple(map(int, spec["rayVersion"].split("."))) >= (2, 52, 0), "token authentication"
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            assert "labels" not in group["rayStartParams"], "labels have their own field"
            assert not group.get("resources") or not {"num-cpus", "num-gpus", "memory"} & set(group["rayStartParams"])
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())
            assert group["template"]["spec"].get("restartPolicy", "Never") == "Never", "autoscaler v2"
            label = r"([A-Za-z0-9][\w.-]{0,61})?[A-Za-z0-9]"
            for key, value in group.get("labels", {}).items():
                assert re.fullmatch(rf"([a-z0-9.-]+/)?{label}", key)
                assert re.fullmatch(label, value)
        for group in spec["workerGroupSpecs"]:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"], (name, group["groupName"])


def test_jobs_of_a_queue_have_fixed_sizes(overlay: str) -> None:
    for job in of_kind(overlay, "RayJob"):
        cluster = job["spec"]["rayClusterSpec"]
        assert not cluster.get("enableInTreeAutoscaling"), "Kueue admits all of a job's pods or none"
        for group in cluster["workerGroupSpecs"]:
            assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]


def test_jobs_pods_are_those_of_the_standing_cluster(overlay: str) -> None:
    cluster = named(overlay, "RayCluster", "scene")["spec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    for job in of_kind(overlay, "RayJob"):
        own = job["spec"]["rayClusterSpec"]
        for key in ("rayVersion", "authOptions", "headGroupSpec"):
            assert own[key] == cluster[key], (job["metadata"]["name"], key)
        for group in own["workerGroupSpecs"]:
            for key in ("labels", "rayStartParams", "template"):
                assert group[key] == groups[group["groupName"]][key], (job["metadata"]["name"], key)
