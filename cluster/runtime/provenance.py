"""Provenance of results: settings without secrets, and the code's commit."""

from __future__ import annotations

import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from cluster.storage.files import write_bytes
from cluster.storage.urls import redact


def redacted_settings(config: Any) -> dict[str, Any]:
    """Convert a configuration dataclass to nested dicts for display and records, without passwords in URLs."""

    def redacted(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: redacted(item) for key, item in value.items()}
        return redact(value) if isinstance(value, str) else value

    return redacted(asdict(config))


def settings_yaml(config: Any) -> str:
    """Return a configuration dataclass as YAML, without passwords in URLs."""
    return yaml.safe_dump(redacted_settings(config), sort_keys=False)


def save_settings(config: Any, url: str) -> None:
    """Write the resolved settings as YAML beside the output they belong to."""
    write_bytes(url, settings_yaml(config).encode())


def git_commit() -> str:
    """Return the commit of this git checkout; outside of one, the environment variable GIT_COMMIT or ""."""
    try:
        command = ["git", "rev-parse", "HEAD"]
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("GIT_COMMIT", "")
    return result.stdout.strip()
