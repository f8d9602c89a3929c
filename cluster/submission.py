"""Jobs submitted to a Ray cluster: the `ray job submit` line, and what the cluster's jobs API tells."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.runs import git_commit
from vgan.errors import BadInput

RAY = str(Path(sys.executable).with_name("ray"))
ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("vgan", "cluster", "jobs")  # what a job needs
MAX_UPLOAD_MIB = 100  # Ray's jobs API takes no more
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


def submit_command(
    address: str, name: str, words: Sequence[str], *, python: str, env_vars: Mapping[str, str] | None = None
) -> list[str]:
    """The `ray job submit` line for `python -m <words>`; only the three packages are uploaded.

    Args:
        address: of the jobs API.
        name: the job's submission id.
        words: a module and its arguments.
        python: the interpreter there.
        env_vars: more of the job's environment; everybody who may see the job sees it.
    """
    env: dict[str, Any] = {
        "working_dir": str(ROOT),
        # "!/.": the folder itself matches "/*" too, and Ray would upload nothing
        "excludes": ["/*", "!/.", *(f"!/{package}" for package in PACKAGES)],
        "env_vars": {"GIT_COMMIT": git_commit(), **(env_vars or {})},
    }
    submit = [RAY, "job", "submit", "--address", address, "--submission-id", name]
    return [*submit, "--runtime-env-json", json.dumps(env), "--", python, "-m", *words]


def client_environment() -> dict[str, str]:
    """This process's environment without the address and token of another cluster, which would be in the way."""
    return {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS" and not k.startswith("RAY_AUTH")}


def submitted_jobs(address: str, token: str) -> list[dict[str, Any]]:
    """What `ray job list` shows: submission id and status of each job, oldest first."""
    headers = {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{address}/api/jobs/", headers=headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        rows = json.load(answer)
    return sorted((r for r in rows if r.get("submission_id")), key=lambda r: r["start_time"])


def free_id(jobs: Sequence[Mapping[str, Any]], name: str) -> str:
    """The submission id for another start of the run `name`: `name`, or `name-2` and so on after earlier ones.

    Raises:
        BadInput: an earlier start has not ended; two at once would write over each other.
    """
    status = {job["submission_id"]: job["status"] for job in jobs}
    found, number = name, 1
    while found in status:
        if status[found] not in ENDED:
            raise BadInput(f"job {found!r} is {status[found]}: wait, `ray job stop {found}`, or give another id=")
        number += 1
        found = f"{name}-{number}"
    return found


def check_upload(folder: Path = ROOT) -> None:
    """Raise BadInput if the packages are more than Ray's jobs API takes."""
    files = [f for package in PACKAGES for f in (folder / package).rglob("*") if f.is_file()]
    files = [f for f in files if "__pycache__" not in f.parts]
    mib = sum(f.stat().st_size for f in files) / 2**20
    if mib > MAX_UPLOAD_MIB:
        largest = max(files, key=lambda f: f.stat().st_size)
        raise BadInput(
            f"{', '.join(PACKAGES)} hold {mib:.0f} MiB, Ray takes {MAX_UPLOAD_MIB}: move {largest} elsewhere"
        )
