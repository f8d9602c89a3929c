"""Manifests of an overlay as `kubectl kustomize` builds them, with the secrets of the namespace."""

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
    """Build every manifest of an overlay; no cluster is needed.

    Raises:
        InputError: kubectl is not installed, or it fails.
    """
    if shutil.which("kubectl") is None:
        raise InputError("kubectl not found, which builds the overlays: install it (no cluster is needed)")
    command = ["kubectl", "kustomize", str(K8S / "overlays" / overlay)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if result.returncode:
        raise InputError(f"overlay {overlay!r} cannot be built: {result.stderr.strip()}")
    return list(yaml.safe_load_all(result.stdout))


@dataclass(frozen=True)
class Namespace:
    """Manifests of an overlay, and the secrets that they refer to (values by secret and key)."""

    manifests: list[Manifest]
    secrets: dict[str, dict[str, str]]

    def of_kind(self, kind: str) -> list[Manifest]:
        """Return the manifests of one kind."""
        return [m for m in self.manifests if m["kind"] == kind]

    def named(self, kind: str, name: str) -> Manifest:
        """Return the manifest with this kind and name.

        Raises:
            ValueError: None or several have this name.
        """
        (manifest,) = [m for m in self.of_kind(kind) if m["metadata"]["name"] == name]
        return manifest

    def environment(self, container: Manifest) -> dict[str, str]:
        """Return the environment of a container: envFrom, then env, with $(NAME) of earlier variables expanded."""
        variables: dict[str, str] = {}
        for source in container.get("envFrom", []):
            variables |= self.named("ConfigMap", source["configMapRef"]["name"])["data"]
        for entry in container.get("env", []):
            variables[entry["name"]] = self._value(entry, variables)
        return variables

    def _value(self, entry: Manifest, variables: dict[str, str]) -> str:
        """Return the value of an entry of `env`: a secret's, or text with earlier variables expanded."""
        if "valueFrom" in entry:
            reference = entry["valueFrom"]["secretKeyRef"]
            return self.secrets[reference["name"]][reference["key"]]
        return expand(entry["value"], variables)


def expand(text: str, environment: dict[str, str]) -> str:
    """Expand each $(NAME) as Kubernetes does in `env`, `command` and `args`; unknown names stay as they are."""
    return re.sub(r"\$\((\w+)\)", lambda match: environment.get(match[1], match[0]), text)


def iter_values(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over (path, value) of a nested value: itself first, then everything below it."""
    yield path, value
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from iter_values(child, f"{path}/{key}")


def number(text: str) -> int:
    """Parse a Kubernetes quantity ("3Gi", "500m", "2") as bytes or whole CPUs, rounded up as KubeRay does."""
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    if text.endswith("m"):
        return -(-int(text[:-1]) // 1000)
    unit = re.sub(r"[\d.]", "", text)
    return int(float(text.removesuffix(unit)) * units.get(unit, 1))
