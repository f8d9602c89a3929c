"""The command line of every job: defaults < preset < config=FILE.yaml < key=value, strict, with help."""

from __future__ import annotations

import dataclasses
import difflib
import json
import signal
import sys
import traceback
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cluster.runtime.provenance import flatten, redacted_settings
from cluster.storage.files import write_bytes
from vgan.errors import InputError
from vgan.presets import preset_overrides

T = TypeVar("T")
BAD_INPUT, INTERRUPTED = 2, 130  # exit codes


def run(job: Callable[[T], None], kind: type[T], about: str, argv: Sequence[str] | None = None) -> int:
    """Run a job from the command line and return its exit code.

    Args:
        job: what to do with the settings.
        kind: the settings' dataclass.
        about: what the job is for, with examples; heads `--help`.
        argv: `key=value` words; None for the process's own.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help", "help"} & set(words):
        print(help_text(kind, about))
        return 0
    # A stopped job ends like an interrupted one: runs are closed, and what was started is stopped.
    before = {s: signal.signal(s, signal.default_int_handler) for s in (signal.SIGTERM, signal.SIGHUP)}
    try:
        config = load(kind, words)
        if getattr(config, "action", "run") in ("run", "retry"):  # others only look at what is there
            print(f"settings:\n{yaml.safe_dump(redacted_settings(config), sort_keys=False)}", end="", flush=True)
        job(config)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return INTERRUPTED
    except Exception as fault:  # noqa: BLE001 - a remote worker's InputError arrives wrapped, and Ray's is a InputError too
        cause = _bad_input_inside(fault)
        if cause is None:
            traceback.print_exc()
            return 1
        print(f"error: {' '.join(line.strip() for line in str(cause).splitlines())}", file=sys.stderr, flush=True)
        return BAD_INPUT
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def load(kind: type[T], words: Sequence[str]) -> T:
    """Settings from `config=FILE` (first, optional) and `key=value` words over the defaults.

    Raises:
        InputError: an unknown key, a value of the wrong kind or out of bounds, an unreadable file.
    """
    config = OmegaConf.structured(kind)
    OmegaConf.set_readonly(config, False)  # frozen dataclasses make read-only configs
    _thaw(config)
    kinds = {key: hint for key, hint, _, _ in options(kind)}
    words, stored, given = list(words), dict[str, Any](), dict[str, Any]()
    if words and words[0].startswith("config="):
        stored = _by_option(flatten(_read_yaml(words.pop(0).removeprefix("config="))), kinds)
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise InputError(f"{word!r} is not key=value; see --help")
        given[key] = value if kinds.get(key) is str else _parse(value)
    if "preset" in kinds:
        stored, given = _apply_presets(stored, given, kinds)
    values = stored | given
    for key, value in values.items():
        if key not in kinds:
            close = difflib.get_close_matches(key, kinds, n=1, cutoff=0.5)
            raise InputError(
                f"unknown key {key!r}{f'; did you mean {close[0]!r}?' if close else ''} (--help lists them all)"
            )
        alone = get_origin(kinds[key]) is list and not isinstance(value, list)
        try:
            OmegaConf.update(config, key, [value] if alone else value)  # seeds=3 means seeds=[3]
        except OmegaConfBaseException as fault:
            raise InputError(f"{key}={value!r}: {str(fault).splitlines()[0]}") from fault
    try:
        return OmegaConf.to_object(config)
    except (ValueError, OmegaConfBaseException) as fault:
        raise InputError(str(fault).splitlines()[0]) from fault


def _by_option(stored: dict[str, Any], kinds: dict[str, Any]) -> dict[str, Any]:
    """Flattened settings with those put together again that are one option: a mapping of the user's own names."""
    found: dict[str, Any] = {}
    for key, value in stored.items():
        whole, _, name = key.partition(".")
        if get_origin(kinds.get(whole)) is dict and name:
            found.setdefault(whole, {})[name] = value
        else:
            found[key] = value
    return found


def _apply_presets(
    stored: dict[str, Any], given: dict[str, Any], keys: Container[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Put a preset's settings before what is said beside it; one that words name comes after all that the file says."""
    if "preset" in given:
        return stored, preset_overrides(str(given["preset"]), keys) | given
    return (preset_overrides(str(stored["preset"]), keys) | stored if "preset" in stored else stored), given


def require(config: Any, *keys: str) -> None:
    """Raise InputError unless each of these options was given."""
    for key in keys:
        if not getattr(config, key):
            raise InputError(f"{key}= is required; see --help")


def save(config: Any, url: str) -> None:
    """Keep the resolved settings beside the output."""
    write_bytes(url, yaml.safe_dump(redacted_settings(config), sort_keys=False).encode())


def options(kind: type, prefix: str = "", made: Any = None) -> list[tuple[str, Any, Any, str]]:
    """Every option below a dataclass as (dotted key, type, default, meaning); `made` holds a section's own defaults."""
    found: list[tuple[str, Any, Any, str]] = []
    hints, made = get_type_hints(kind), made or kind()
    for field in dataclasses.fields(kind):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            found += options(hint, f"{key}.", getattr(made, field.name))  # type: ignore[arg-type]
        else:
            found.append((key, hint, getattr(made, field.name), field.metadata.get("help", "")))
    return found


def help_text(kind: type, about: str) -> str:
    """What --help prints: the job's purpose, then every option with default, type and meaning."""
    rows = [(f"{key}={_shown(default)}", _type_name(hint), meaning) for key, hint, default, meaning in options(kind)]
    width = min(44, max(len(first) for first, _, _ in rows))
    lines = [f"  {first:<{width}}  {meaning} [{name}]" for first, name, meaning in rows]
    return "\n".join([about.strip(), "", "options, given as key=value after an optional config=FILE.yaml:", *lines])


def _bad_input_inside(fault: BaseException | None) -> InputError | None:
    """The InputError that a Ray error carries, if that is what went wrong on the worker."""
    seen = 0
    while fault is not None and seen < 10:
        for inner in (fault, *getattr(fault, "worker_failures", {}).values(), getattr(fault, "cause", None)):
            if isinstance(inner, InputError):
                return InputError(inner.args[0] if inner.args else str(inner))
        fault, seen = fault.__cause__ or getattr(fault, "cause", None), seen + 1
    return None


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(Path(path).read_text())
    except OSError as fault:
        raise InputError(f"cannot read config={path!r}: {fault.strerror}") from fault
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise InputError(f"config={path!r} is not YAML: {fault}") from fault
    if not isinstance(value, dict):
        raise InputError(f"config={path!r} must hold `key: value` lines")
    return value


def _parse(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # the type check that follows says what was expected


def _thaw(config: Any) -> None:
    for key in config:
        if OmegaConf.is_config(config[key]):
            OmegaConf.set_readonly(config[key], False)
            if OmegaConf.is_dict(config[key]):
                _thaw(config[key])


def _shown(value: Any) -> str:
    return "" if value in ("", None) else json.dumps(value) if isinstance(value, list | bool) else str(value)


def _type_name(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)) if not hasattr(hint, "__args__") else str(hint)
