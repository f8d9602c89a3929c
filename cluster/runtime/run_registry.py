"""Identity of resumable runs: a record in the run's folder holds its key and the settings that must not change."""

from __future__ import annotations

import uuid
from typing import Any

from cluster.storage.conditional_write import put_if_absent
from cluster.storage.files import json_bytes, read_json
from cluster.storage.urls import join_url
from vgan.errors import InputError
from vgan.options import flatten
from vgan.renamed_keys import SETTINGS_VERSION, upgrade

RECORD = "run.json"


def register_run(url: str, name: str, settings: dict[str, Any], defaults: dict[str, Any] | None = None) -> str:
    """Return the key of the run in a folder, registering the run at its first start.

    Args:
        url: Folder of the run.
        name: Name of the run, the prefix of its key.
        settings: Settings that a restart must not change; nested.
        defaults: Values in effect for older runs, whose records lack settings introduced later; nested.

    Returns:
        The key, the same at every start.

    Raises:
        InputError: The run was started with other settings, which the message lists.
    """
    record_url = join_url(url, RECORD)
    record = {"key": f"{name}-{uuid.uuid4().hex}", "settings": settings, "settings_version": SETTINGS_VERSION}
    put_if_absent(record_url, json_bytes(record))
    record = read_json(record_url)
    old, new = flatten(defaults or {}) | flatten(upgrade(record["settings"])), flatten(settings)
    changed = [f"{k} was {old.get(k)!r}, now {new.get(k)!r}" for k in sorted(old | new) if old.get(k) != new.get(k)]
    if changed:
        raise InputError(
            f"{name!r} in {url!r} was started with other settings ({'; '.join(changed)}): choose another name="
        )
    return record["key"]
