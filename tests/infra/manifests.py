"""Manifests of an overlay as `kubectl kustomize` builds them, and their pod templates."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from infra.local_kubernetes.manifests import K8S, Manifest, build

OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())


@functools.cache
def built(overlay: str) -> tuple[Manifest, ...]:
    """Build every manifest of an overlay; no cluster is needed."""
    if shutil.which("kubectl") is None:
        if os.environ.get("CI"):
            pytest.fail("kubectl not found; in CI these tests must run")
        pytest.skip("kubectl not found, which builds the overlays")
    return tuple(build(overlay))


def of_kind(overlay: str, *kinds: str) -> list[Manifest]:
    return [m for m in built(overlay) if m["kind"] in kinds]


def named(overlay: str, kind: str, name: str) -> Manifest:
    (manifest,) = [m for m in of_kind(overlay, kind) if m["metadata"]["name"] == name]
    return manifest


def settings(overlay: str) -> dict[str, str]:
    """Return the environment of every Ray node."""
    return named(overlay, "ConfigMap", "settings")["data"]


def ray_clusters(overlay: str) -> Iterator[tuple[str, Manifest]]:
    """Iterate over (name, spec) of the standing cluster and of each job's cluster."""
    for m in of_kind(overlay, "RayCluster"):
        yield m["metadata"]["name"], m["spec"]
    for m in of_kind(overlay, "RayJob"):
        yield f"job {m['metadata']['name']}", m["spec"]["rayClusterSpec"]


@dataclass(frozen=True)
class Pod:
    """Pod template and the manifest that it belongs to."""

    where: str
    template: Manifest
    by_operator: str = ""  # head or a group's name, of pods that KubeRay completes
    namespace: str = "scene"

    @property
    def spec(self) -> Manifest:
        return self.template["spec"]

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the running pod, those of the operator included."""
        labels = dict(self.template["metadata"]["labels"])
        if self.by_operator:
            labels |= {
                "ray.io/node-type": "head" if self.by_operator == "head" else "worker",
                "ray.io/is-ray-node": "yes",
            }
            labels |= {"ray.io/group": "headgroup" if self.by_operator == "head" else self.by_operator}
        return labels

    def containers(self, *, init: bool = True) -> list[Manifest]:
        return [*self.spec["containers"], *(self.spec.get("initContainers", []) if init else [])]


def pods(overlay: str) -> list[Pod]:
    """List every pod template of an overlay."""
    templates = []
    for m in of_kind(overlay, "Deployment", "StatefulSet", "Job", "DaemonSet"):
        templates.append(Pod(f"{m['kind']} {m['metadata']['name']}", m["spec"]["template"]))
    for name, spec in ray_clusters(overlay):
        templates.append(Pod(f"{name}: head", spec["headGroupSpec"]["template"], "head"))
        for group in spec["workerGroupSpecs"]:
            templates.append(Pod(f"{name}: {group['groupName']}", group["template"], group["groupName"]))
    for m in of_kind(overlay, "RayJob"):
        templates.append(Pod(f"job {m['metadata']['name']}: submitter", m["spec"]["submitterPodTemplate"]))
    return templates
