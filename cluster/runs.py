"""Runs that continue: a record in the run's folder holds its key and the settings that a restart must share."""

from __future__ import annotations

import os
import re
import subprocess
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster import storage
from vgan.errors import BadInput

RECORD = "run.json"


def claim(url: str, name: str, settings: dict[str, Any], defaults: dict[str, Any] | None = None) -> str:
    """The key of the run in the folder `url`, made at its first start and the same at every later one.

    Args:
        url: folder of the run.
        name: what the user calls it; begins the key.
        settings: what a restart may not change; nested.
        defaults: values of those that a run which began before they were there has had; nested.

    Raises:
        BadInput: the run was started with other settings; says which.
    """
    record_url = storage.join(url, RECORD)
    storage.write_new(record_url, storage.json_bytes({"key": f"{name}-{uuid.uuid4().hex}", "settings": settings}))
    record = storage.read_json(record_url)
    was, now = flatten(defaults or {}) | flatten(record["settings"]), flatten(settings)
    changed = [f"{k} was {was.get(k)!r}, now {now.get(k)!r}" for k in sorted(was | now) if was.get(k) != now.get(k)]
    if changed:
        raise BadInput(
            f"{name!r} in {url!r} was started with other settings ({'; '.join(changed)}): choose another name="
        )
    return record["key"]


def public_settings(config: Any) -> dict[str, Any]:
    """A config's values as plain data, fit to be shown and kept: passwords in urls are blanked."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        return storage.redact(value) if isinstance(value, str) else value

    return clean(asdict(config))


def check_name(name: str) -> None:
    """Raise ValueError unless a run's name is safe in folders and queries."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise ValueError(f"name may hold letters, digits, dot, dash and underscore, got {name!r}")


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"model.base": 64, ...}."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat


def git_commit() -> str:
    """The checkout's commit, or "" outside of one."""
    try:
        command = ["git", "rev-parse", "HEAD"]
        found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("GIT_COMMIT", "")
    return found.stdout.strip()
