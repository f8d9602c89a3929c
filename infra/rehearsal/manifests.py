"""What `kubectl kustomize` makes of an overlay, and the secrets beside it, as a cluster would hold them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vgan.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "infra/k8s"
Manifest = dict[str, Any]


def build(overlay: str) -> list[Manifest]:
    """Every manifest of an overlay. Needs no cluster.

    Raises:
        InputError: no kubectl, or it refuses.
    """
    if shutil.which("kubectl") is None:
        raise InputError("kubectl not found, which builds the overlays: install it (no cluster is needed)")
    command = ["kubectl", "kustomize", str(K8S / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise InputError(f"overlay {overlay!r} cannot be built: {done.stderr.strip()}")
    return list(yaml.safe_load_all(done.stdout))


@dataclass(frozen=True)
class Namespace:
    """An overlay's manifests and the secrets beside them."""

    manifests: list[Manifest]
    secrets: dict[str, dict[str, str]]

    def of_kind(self, kind: str) -> list[Manifest]:
        return [m for m in self.manifests if m["kind"] == kind]

    def named(self, kind: str, name: str) -> Manifest:
        (found,) = [m for m in self.of_kind(kind) if m["metadata"]["name"] == name]
        return found

    def environment(self, container: Manifest) -> dict[str, str]:
        """What a container's processes see: envFrom, env, and $(NAME) of what came before."""
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            found |= self.named("ConfigMap", source["configMapRef"]["name"])["data"]
        for entry in container.get("env", []):
            found[entry["name"]] = self._value(entry, found)
        return found

    def _value(self, entry: Manifest, before: dict[str, str]) -> str:
        if "valueFrom" in entry:
            reference = entry["valueFrom"]["secretKeyRef"]
            return self.secrets[reference["name"]][reference["key"]]
        return expand(entry["value"], before)


def expand(text: str, environment: dict[str, str]) -> str:
    """`text` with each $(NAME) filled in, as Kubernetes does in `env`, `command` and `args`; unknown ones stay."""
    return re.sub(r"\$\((\w+)\)", lambda found: environment.get(found[1], found[0]), text)


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of everything below, itself first."""
    yield path, value
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from walk(child, f"{path}/{key}")


def number(text: str) -> int:
    """A Kubernetes quantity as bytes or whole CPUs, rounded up as KubeRay does: "3Gi", "500m", "2"."""
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    if text.endswith("m"):
        return -(-int(text[:-1]) // 1000)
    unit = re.sub(r"[\d.]", "", text)
    return int(float(text.removesuffix(unit)) * units.get(unit, 1))
