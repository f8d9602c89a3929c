"""Dataclass fields with a help text, and checks of their values."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import field
from typing import Any

from vgan.errors import InputError

LEVELS = ("required", "common", "advanced")  # order of the groups in `--help`


def option(default: Any, meaning: str, level: str = "advanced") -> Any:
    """Make a dataclass field for the command line.

    Args:
        default: default value; lists and mappings are copied for each instance.
        meaning: help text, with the unit and the meaning of 0 or empty.
        level: one of LEVELS, the group that `--help` prints the option in.
    """
    metadata = {"help": meaning, "level": level}
    if isinstance(default, list | dict | set):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: Callable[[], Any], meaning: str) -> Any:
    """Make a field that holds a nested group of options.

    Args:
        kind: dataclass of the group, or a function that returns an instance with other defaults.
        meaning: help text of the group.
    """
    return field(default_factory=kind, metadata={"help": meaning})


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError, naming the option `name` and `value`, unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def check_name(name: str) -> None:
    """Raise ValueError unless the name of a run is valid in paths and in MLflow queries."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise ValueError(f"name may hold letters, digits, dot, dash and underscore, got {name!r}")


def require_options(config: Any, *keys: str) -> None:
    """Raise InputError unless each of these options has a value."""
    for key in keys:
        if not getattr(config, key):
            raise InputError(f"{key}= is required; see --help")


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted keys: {"model.base_width": 64, ...}."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat
