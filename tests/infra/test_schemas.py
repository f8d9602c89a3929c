"""Every overlay's manifests against the schemas of KubeRay and Kubernetes, and the operator's own rules."""

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
KUBERNETES = "v1.32.0-local-strict"  # the oldest release that is meant to work; strict: no unknown fields


@functools.cache
def core_validator(kind: str, api_version: str) -> Draft202012Validator:
    """A validator with the schema that the package kubernetes-validate carries; its own code is not needed."""
    package = importlib.util.find_spec("kubernetes_validate")
    if package is None or not package.submodule_search_locations:
        pytest.skip("kubernetes-validate is not installed: pip install scene-dynamics[dev]")
    folder = Path(package.submodule_search_locations[0]) / "kubernetes-json-schema" / KUBERNETES
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)  # policy/v1 -> policy-v1, as files are named
    schema = json.loads((folder / f"{kind.lower()}-{group}.json").read_text())
    definitions = Resource.from_contents(json.loads((folder / "_definitions.json").read_text()))
    return Draft202012Validator(schema, registry=definitions @ Registry())


def crd_validator(shared: Path, kind: str) -> Draft202012Validator:
    """A validator with KubeRay's schema, closed: an API server drops unknown fields silently, and typos with them."""
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
    """The schema with objects that name their fields refusing all others."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _closed(value) for key, value in schema.items()}
    is_schema = isinstance(found.get("properties"), dict) and found.get("type") == "object"
    if is_schema and not found.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    if found.get("x-kubernetes-int-or-string"):
        found.pop("anyOf", None)
        found["type"] = ["integer", "string"]
    return found


def faults(validator: Draft202012Validator, manifest: Manifest) -> list[str]:
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in validator.iter_errors(manifest)]


def test_manifest_fits_its_schema(overlay: str, shared: Path) -> None:
    found = {}
    for m in built(overlay):
        is_ray = m["apiVersion"].startswith("ray.io/")
        validator = crd_validator(shared, m["kind"]) if is_ray else core_validator(m["kind"], m["apiVersion"])
        if wrong := faults(validator, m):
            found[f"{m['kind']} {m['metadata']['name']}"] = wrong
    assert found == {}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec/headGroupSpec/template/spec/containers/0/imagee", "x"),  # a typo
        ("spec/workerGroupSpecs/0/minReplicas", "one"),
        ("spec/authOptions/mode", "none"),
    ],
)
def test_schema_check_finds_a_fault(overlay: str, shared: Path, path: str, value: Any) -> None:
    broken = copy.deepcopy(named(overlay, "RayCluster", "scene"))
    at: Any = broken
    *parents, last = path.split("/")
    for key in parents:
        at = at[int(key) if isinstance(at, list) else key]
    at[last] = value
    assert len(faults(crd_validator(shared, "RayCluster"), broken)) == 1


def test_core_schema_check_finds_a_fault(overlay: str) -> None:
    broken = copy.deepcopy(named(overlay, "Deployment", "mlflow"))
    broken["spec"]["template"]["spec"]["container"] = []
    assert faults(core_validator("Deployment", "apps/v1"), broken)


# ---- what KubeRay's operator refuses (its utils/validation.go, release 1.7) ------------------------------------------


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
            assert "labels" not in group["rayStartParams"], "have a field of their own"
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
        assert not cluster.get("enableInTreeAutoscaling"), "Kueue admits a job whole"
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
