"""Images of infra/image built with buildah: user, contents, and files that must be absent."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local_kubernetes.manifests import ROOT

pytestmark = pytest.mark.image
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
CACHES = ("root/.cache", "home/scene/.cache", "var/cache/apt/archives", "var/lib/apt/lists")


def buildah(*words: str) -> str:
    return subprocess.run(["buildah", *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module", params=["cpu", "mlflow"])
def image(request: pytest.FixtureRequest) -> str:
    """Name of an existing image."""
    name = f"localhost/scene-dynamics-{request.param}:{VERSION}"
    if shutil.which("buildah") is None or os.geteuid():
        pytest.skip("buildah not found, or not root")
    if subprocess.run(["buildah", "inspect", "--type", "image", name], capture_output=True, check=False).returncode:
        pytest.skip(f"no image {name}: make image BUILDER=buildah TARGETS='cpu mlflow'")
    return name


@pytest.fixture(scope="module")
def container(image: str) -> Iterator[str]:
    made = buildah("from", "--pull-never", image)
    yield made
    buildah("rm", made)


@pytest.fixture(scope="module")
def files(image: str) -> Iterator[Path]:
    """Mounted files of the image, from a container in which nothing runs, because processes leave caches."""
    made = buildah("from", "--pull-never", image)
    yield Path(buildah("mount", made))
    buildah("rm", made)


def run(container: str, *command: str) -> str:
    """Run a command as the image's user in the image's environment; return its output."""
    return buildah("run", "--isolation", "chroot", container, "--", *command)


def of_cpu(image: str) -> None:
    if "-cpu:" not in image:
        pytest.skip("of the image for Ray's nodes")


def test_image_runs_as_user_1000(image: str, container: str) -> None:
    config = json.loads(buildah("inspect", "--type", "image", image))["OCIv1"]["config"]
    assert config["User"] == "1000"
    assert run(container, "id", "-u") == "1000"


def test_nothing_of_the_code_or_environment_is_the_users_to_change(files: Path) -> None:
    paths = [p for folder in ("opt/scene", "srv/scene") for p in (files / folder).rglob("*") if not p.is_symlink()]
    assert paths
    assert [p for p in paths if p.stat().st_uid == 1000 or p.stat().st_mode & 0o002] == []
    assert [p for p in paths if not p.stat().st_mode & 0o004] == []


def test_image_for_ray_has_what_the_operator_and_the_manifests_ask_for(image: str, container: str) -> None:
    of_cpu(image)
    locked = re.search(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked
    assert run(container, "ray", "--version").split()[-1] == locked[1]
    programs = run(container, "sh", "-c", "for name in wget python ray; do command -v $name; done")
    assert programs.split() == ["/usr/bin/wget", "/opt/scene/bin/python", "/opt/scene/bin/ray"]
    assert run(container, "pwd") == "/srv/scene"


def test_jobs_and_decoders_import(image: str, container: str) -> None:
    of_cpu(image)
    modules = (
        "av, cv2, decord, deepspeed, mlflow, ray.data, ray.train.torch, s3fs, jobs.prepare, jobs.train, jobs.finetune"
    )
    assert run(container, "python", "-c", f"import {modules}; print(jobs.__file__)").endswith(
        "/srv/scene/jobs/__init__.py"
    )


def test_deepspeeds_op_is_installed_and_loads_without_a_compiler(image: str, container: str) -> None:
    of_cpu(image)
    code = (
        "from cluster.training.deepspeed_ops import build_cpu_ops, has_prebuilt_cpu_op; "
        "build_cpu_ops(); print(has_prebuilt_cpu_op())"
    )
    assert run(container, "python", "-c", code).splitlines()[-1] == "True"
    assert run(container, "sh", "-c", "command -v c++ g++ gcc cc make || echo none") == "none"
    assert (
        run(
            container,
            "sh",
            "-c",
            "ls -d ~/.cache/torch_extensions /opt/scene/torch_extensions 2>/dev/null || echo none",
        )
        == "none"
    )


def test_mlflow_serves_with_passwords_postgres_and_s3(image: str, container: str) -> None:
    if "-mlflow:" not in image:
        pytest.skip("of the image for MLflow")
    assert run(container, "python", "-c", "import boto3, flask_wtf, psycopg, mlflow; print(mlflow.__version__)")
    assert "basic-auth" in run(container, "mlflow", "server", "--help")


def test_bill_of_materials_names_what_is_installed(container: str, files: Path) -> None:
    bill = json.loads((files / "opt/scene/sbom.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    named = {(c["name"].lower(), c["version"]) for c in bill["components"]}
    installed = json.loads(run(container, "python", "-m", "pip", "list", "--format", "json"))
    assert {(p["name"].lower(), p["version"]) for p in installed if p["name"] != "scene-dynamics"} <= named


def test_layers_hold_no_secret_and_no_cache(files: Path) -> None:
    cached = [p for cache in CACHES for p in (files / cache).rglob("*") if p.is_file() and p.name != "lock"]
    assert cached == []
    assert not list(files.glob("run/secrets/*"))
    for name in ("etc/pip.conf", "root/.config/pip/pip.conf", "root/.netrc", "root/.pypirc"):
        assert not (files / name).exists() or not (files / name).read_text(), name
    for name in (".git", "tests", "out"):
        assert not (files / "srv/scene" / name).exists()


def layers(image: str) -> list[tuple[str, int]]:
    """Return (build command, stored bytes) of each layer, lowest first."""
    store = Path(json.loads(buildah("info"))["store"]["GraphRoot"])
    driver = json.loads(buildah("info"))["store"]["GraphDriverName"]
    known = {layer["id"]: layer for layer in json.loads((store / f"{driver}-layers/layers.json").read_text())}
    images = json.loads((store / f"{driver}-images/images.json").read_text())
    (top,) = [i["layer"] for i in images if image in i.get("names", [])]
    sizes = []
    while top:
        sizes.append(known[top]["diff-size"])
        top = known[top].get("parent", "")
    steps = [
        h
        for h in json.loads(buildah("inspect", "--type", "image", image))["OCIv1"]["history"]
        if not h.get("empty_layer")
    ]
    return list(zip([step.get("created_by", "") for step in steps], reversed(sizes), strict=True))


def test_layers_above_the_environment_are_small(image: str) -> None:
    """Check that a change of code transfers few bytes; print the size of every layer."""
    sizes = layers(image)
    print(f"\n{image}: {sum(size for _, size in sizes) / 1e6:.0f} MB")
    for step, size in sizes:
        print(f"  {size / 1e6:8.1f} MB  {' '.join(step.split())[:100]}")
    (environment,) = [number for number, (step, _) in enumerate(sizes) if "/opt/scene" in step and "COPY" in step]
    assert sum(size for _, size in sizes[environment + 1 :]) < 5e6
    assert sizes[environment][1] > 1e8
