"""Dataclass fields with a help text, and checks of their values."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import field
from typing import Any


def option(default: Any, meaning: str) -> Any:
    """Make a dataclass field with a default and the help text, including the unit, that `--help` prints."""
    if isinstance(default, list | dict | set):
        return field(default_factory=lambda: type(default)(default), metadata={"help": meaning})
    return field(default=default, metadata={"help": meaning})


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
