"""Submission of jobs to a Ray cluster: the `ray job submit` command, and queries of the cluster's jobs API."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.runtime.provenance import git_commit
from vgan.errors import InputError

RAY = str(Path(sys.executable).with_name("ray"))
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("vgan", "cluster", "jobs")  # uploaded with each job
MAX_UPLOAD_MIB = 100  # limit of Ray's jobs API
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


def submit_command(
    address: str, name: str, words: Sequence[str], *, python: str, env_vars: Mapping[str, str] | None = None
) -> list[str]:
    """Build the `ray job submit` command for `python -m <words>`; it uploads only the packages in PACKAGES.

    Args:
        address: URL of the jobs API.
        name: The job's submission id.
        words: A module and its arguments.
        python: Python interpreter on the cluster.
        env_vars: Additional environment variables of the job, readable by everybody who can list the job.
    """
    env: dict[str, Any] = {
        "working_dir": str(ROOT),
        # "!/.": "/*" matches the working folder itself too, and Ray would upload nothing
        "excludes": ["/*", "!/.", *(f"!/{package}" for package in PACKAGES)],
        "env_vars": {"GIT_COMMIT": git_commit(), **(env_vars or {})},
    }
    submit = [RAY, "job", "submit", "--address", address, "--submission-id", name]
    return [*submit, "--runtime-env-json", json.dumps(env), "--", python, "-m", *words]


def client_env() -> dict[str, str]:
    """Return this process's environment without the variables that hold the address and token of a cluster."""
    return {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS" and not k.startswith("RAY_AUTH")}


def list_jobs(address: str, token: str) -> list[dict[str, Any]]:
    """List the submitted jobs, oldest first, with the fields of `ray job list`: submission_id, status, start_time, ...

    Args:
        address: URL of the jobs API.
        token: Authentication token of the cluster.

    Raises:
        OSError: The jobs API does not answer within 30 s, or it rejects the token (urllib.error.HTTPError).
    """
    headers = {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{address}/api/jobs/", headers=headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        jobs = json.load(response)
    return sorted((job for job in jobs if job.get("submission_id")), key=lambda job: job["start_time"])


def next_submission_id(jobs: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return the first unused submission id of the run `name`: `name`, then `name-2`, `name-3`, ...

    Args:
        jobs: Submitted jobs with `submission_id` and `status`.
        name: Name of the run.

    Raises:
        InputError: An earlier job of the run has not ended; two concurrent jobs would overwrite each other's files.
    """
    status = {job["submission_id"]: job["status"] for job in jobs}
    candidate, number = name, 1
    while candidate in status:
        if status[candidate] not in ENDED:
            raise InputError(
                f"job {candidate!r} is {status[candidate]}: wait, `ray job stop {candidate}`, or give another id="
            )
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def check_upload_size(folder: Path = ROOT) -> None:
    """Raise InputError if the packages in `folder` exceed MAX_UPLOAD_MIB, the upload limit of Ray's jobs API."""
    files = [f for package in PACKAGES for f in (folder / package).rglob("*") if f.is_file()]
    files = [f for f in files if "__pycache__" not in f.parts]
    mib = sum(f.stat().st_size for f in files) / 2**20
    if mib > MAX_UPLOAD_MIB:
        largest = max(files, key=lambda f: f.stat().st_size)
        raise InputError(
            f"{', '.join(PACKAGES)} hold {mib:.0f} MiB, Ray's limit is {MAX_UPLOAD_MIB}: move {largest} elsewhere"
        )
