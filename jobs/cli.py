"""Command line of every job: defaults < preset < config=FILE.yaml < key=value, strict, with grouped help.

Nothing here imports torch, Ray, MLflow, pyarrow or OmegaConf before the arguments are checked, so `--help` and a
misspelled key are answered at once. Jobs import their heavy modules inside `main` for the same reason.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import shutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import yaml

from vgan.errors import InputError
from vgan.options import LEVELS, flatten
from vgan.presets import preset_overrides
from vgan.renamed_keys import new_name

T = TypeVar("T")
BAD_INPUT, INTERRUPTED = 2, 130  # exit codes
HELP = ("-h", "--help", "help")


class Option(NamedTuple):
    """One option of a job."""

    key: str  # dotted
    type: Any
    default: Any
    help: str
    level: str  # one of LEVELS


class Section(NamedTuple):
    """A group of options whose keys share a prefix."""

    key: str
    help: str


def run(job: Callable[[T], None], config_class: type[T], about: str, argv: Sequence[str] | None = None) -> int:
    """Run a job from the command line and return its exit code.

    Args:
        job: function that takes the settings.
        config_class: the settings' dataclass.
        about: purpose of the job with examples; `--help` prints it above the options.
        argv: `key=value` arguments; None: those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if topic := _help_topic(arguments):
        return _print_help(config_class, about, topic)
    # SIGTERM and SIGHUP end a job as Ctrl-C does: runs are closed, and processes it started are stopped.
    previous = {s: signal.signal(s, signal.default_int_handler) for s in (signal.SIGTERM, signal.SIGHUP)}
    try:
        config = load_config(config_class, arguments)
        if getattr(config, "print_settings", getattr(config, "action", "run") == "run"):
            from cluster.runtime.provenance import settings_yaml

            print(f"settings:\n{settings_yaml(config)}", end="", flush=True)
        job(config)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - Ray wraps an InputError of a remote worker in its own exceptions
        cause = _input_error_inside(error)
        if cause is None:
            traceback.print_exc()
            return 1
        print(f"error: {' '.join(line.strip() for line in str(cause).splitlines())}", file=sys.stderr, flush=True)
        return BAD_INPUT
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


# ---- settings


def load_config(config_class: type[T], arguments: Sequence[str]) -> T:
    """Read settings from `config=FILE` (first, optional) and `key=value` arguments over the defaults.

    Raises:
        InputError: an unknown key, a value of the wrong type or out of bounds, an unreadable file.
    """
    types = {option.key: option.type for option in list_options(config_class)}
    arguments, stored, overrides = list(arguments), dict[str, Any](), dict[str, Any]()
    if arguments and arguments[0].startswith("config="):
        stored = _by_option(flatten(_read_yaml(arguments.pop(0).removeprefix("config="))), types)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise InputError(f"{argument!r} is not key=value; see --help")
        overrides[key] = value if types.get(key) is str else _parse(value)
    for key in types:
        if key == "preset" or key.endswith("filters.preset"):
            stored, overrides = _apply_preset(key, stored, overrides, types)
    values = stored | overrides
    for key in values:
        _check_key(key, types)
    return _build(config_class, values, types)


def _check_key(key: str, known: Container[str]) -> None:
    """Raise InputError naming the nearest key, or the new name of a renamed one, unless `key` is known."""
    if key in known:
        return
    renamed = new_name(key)
    if renamed in known:
        raise InputError(f"unknown key {key!r}: it is called {renamed!r} now")
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)  # type: ignore[call-overload]
    raise InputError(f"unknown key {key!r}{f'; did you mean {close[0]!r}?' if close else ''} (--help=all lists them)")


def _build(config_class: type[T], values: dict[str, Any], types: dict[str, Any]) -> T:
    """Return the dataclass with these values, each converted to its option's type."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    config = OmegaConf.structured(config_class)
    OmegaConf.set_readonly(config, False)  # frozen dataclasses make read-only configs
    _make_writable(config)
    for key, value in values.items():
        is_single = get_origin(types[key]) is list and not isinstance(value, list)
        try:
            OmegaConf.update(config, key, [value] if is_single else value)  # seeds=3 means seeds=[3]
        except OmegaConfBaseException as error:
            raise InputError(f"{key}={value!r}: {str(error).splitlines()[0]}") from error
    try:
        return OmegaConf.to_object(config)
    except (ValueError, OmegaConfBaseException) as error:
        raise InputError(str(error).splitlines()[0]) from error


def _make_writable(config: Any) -> None:
    from omegaconf import OmegaConf

    for key in config:
        if OmegaConf.is_config(config[key]):
            OmegaConf.set_readonly(config[key], False)
            if OmegaConf.is_dict(config[key]):
                _make_writable(config[key])


def _by_option(stored: dict[str, Any], types: dict[str, Any]) -> dict[str, Any]:
    """Rejoin flattened settings that are one option: a mapping whose keys the user chose."""
    joined: dict[str, Any] = {}
    for key, value in stored.items():
        option, _, name = key.partition(".")
        if get_origin(types.get(option)) is dict and name:
            joined.setdefault(option, {})[name] = value
        else:
            joined[key] = value
    return joined


def _apply_preset(
    key: str, stored: dict[str, Any], overrides: dict[str, Any], keys: Container[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Insert a preset's settings below explicit ones; a preset named by an argument overrides the whole file."""
    if key in overrides:
        return stored, preset_overrides(key, str(overrides[key]), keys) | overrides
    return (preset_overrides(key, str(stored[key]), keys) | stored if key in stored else stored), overrides


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise InputError(f"cannot read config={path!r}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config={path!r} is not YAML: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"config={path!r} must hold `key: value` lines")
    return value


def _parse(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # the type check that follows names the expected type


# ---- help


def list_options(config_class: type, prefix: str = "", instance: Any = None) -> list[Option]:
    """List every option below a dataclass; `instance` holds a section's own defaults."""
    options: list[Option] = []
    hints, instance = get_type_hints(config_class), instance or config_class()
    for field in dataclasses.fields(config_class):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            options += list_options(hint, f"{key}.", getattr(instance, field.name))  # type: ignore[arg-type]
        else:
            level = field.metadata.get("level", LEVELS[-1])
            options.append(Option(key, hint, getattr(instance, field.name), field.metadata.get("help", ""), level))
    return options


def list_sections(config_class: type) -> list[Section]:
    """List the sections of a dataclass, in order."""
    hints = get_type_hints(config_class)
    fields = [field for field in dataclasses.fields(config_class) if dataclasses.is_dataclass(hints[field.name])]
    return [Section(field.name, field.metadata.get("help", "")) for field in fields]


def _help_topic(arguments: Sequence[str]) -> str:
    """Return the requested help: "common", "all" or the name of a section (`--help=NAME`); "" if none is requested."""
    for argument in arguments:
        if argument in HELP:
            return "common"
        if argument.startswith("--help="):
            return argument.removeprefix("--help=") or "common"
    return ""


def _print_help(config_class: type, about: str, topic: str) -> int:
    topics = [section.key for section in list_sections(config_class)]
    if topic not in ("common", "all", *topics):
        print(f"error: --help={topic}: give one of all, {', '.join(topics)}", file=sys.stderr)
        return BAD_INPUT
    print_page(help_text(config_class, about, topic))
    return 0


def print_page(text: str) -> None:
    """Print a text that may be read through head or less, which close the pipe before its end."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # Python would print a traceback at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def help_text(config_class: type, about: str, topic: str = "common", width: int = 0) -> str:
    """Return the text of `--help`: purpose and examples, then the options by level.

    Args:
        config_class: dataclass of the settings.
        about: purpose of the job with examples.
        topic: "common" shows sections as one line each, "all" every option, a section's name only its options.
        width: line width in columns; 0: that of the terminal.
    """
    width = width or max(60, min(110, shutil.get_terminal_size((100, 24)).columns))
    options = list_options(config_class)
    if topic not in ("common", "all"):
        return "\n".join(_option_lines([o for o in options if o.key.startswith(f"{topic}.")], width))
    lines = [about.strip(), "", "Give options as key=value, after an optional config=FILE.yaml."]
    top = [option for option in options if "." not in option.key]
    for level in LEVELS:
        if group := [option for option in top if option.level == level]:
            lines += ["", f"{level}:", *_option_lines(group, width)]
    sections = list_sections(config_class)
    if topic == "all":
        for section in sections:
            inside = [option for option in options if option.key.startswith(f"{section.key}.")]
            lines += ["", f"{section.key}: {section.help}", *_option_lines(inside, width)]
    elif sections:
        lines += ["", "sections (--help=NAME shows one, --help=all everything):"]
        for section in sections:
            count = sum(option.key.startswith(f"{section.key}.") for option in options)
            lines += _wrapped(f"{section.key}.*", f"{section.help} ({count} options)", width)
    return "\n".join(lines)


def _option_lines(options: Sequence[Option], width: int) -> Iterator[str]:
    """Yield the help lines of options: key, default and type, then the meaning, wrapped."""
    for option in options:
        name = f"{option.key}={_format_value(option.default)}"
        yield from _wrapped(name, f"{option.help} [{type_name(option.type)}]", width)


def _wrapped(name: str, text: str, width: int, indent: int = 30) -> list[str]:
    """Return a name and its text in two columns; a long name gets a line of its own."""
    body = textwrap.wrap(text, max(30, width - indent - 2)) or [""]
    if len(name) <= indent - 2:
        return [f"  {name:<{indent}}{body[0]}".rstrip(), *(" " * (indent + 2) + line for line in body[1:])]
    return [f"  {name}", *(" " * (indent + 2) + line for line in body)]


def _format_value(value: Any) -> str:
    return "" if value in ("", None) else json.dumps(value) if isinstance(value, list | bool | dict) else str(value)


def type_name(hint: Any) -> str:
    """Return the name of a type in help texts: text, integer, number, true or false, list of text."""
    names = {str: "text", int: "integer", float: "number", bool: "true or false"}
    if get_origin(hint) is list:
        return f"list of {type_name(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return "mapping of names"
    if get_origin(hint) is UnionType:
        return " or ".join(type_name(part) for part in get_args(hint) if part is not type(None))
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _input_error_inside(error: BaseException | None) -> InputError | None:
    """Return the InputError of a remote worker that a Ray error wraps, or None."""
    depth = 0
    while error is not None and depth < 10:
        for inner in (error, *getattr(error, "worker_failures", {}).values(), getattr(error, "cause", None)):
            if isinstance(inner, InputError):
                return InputError(inner.args[0] if inner.args else str(inner))
        error, depth = error.__cause__ or getattr(error, "cause", None), depth + 1
    return None


def pop_verb(arguments: list[str], verbs: Container[str], job: str) -> str | int:
    """Remove and return the verb that precedes the options; "" for a help request, an exit code after an error."""
    if _help_topic(arguments[:1]):
        return ""
    verb = arguments.pop(0) if arguments and "=" not in arguments[0] else ""
    if verb in verbs:
        return verb
    names = list(verbs)  # type: ignore[call-overload]
    close = difflib.get_close_matches(verb, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    print(f"error: python -m {job} needs one of {', '.join(names)} first, got {verb!r}{hint}", file=sys.stderr)
    return BAD_INPUT
