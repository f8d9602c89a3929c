"""Commands in pages, help texts and named runs use jobs and keys that exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from cluster.training.config import TrainConfig
from jobs import cli
from jobs.__main__ import VERBS
from jobs.finetune import FinetuneJobConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    path
    for pattern in ("*.md", ".github/*.md", "*/README.md", "tests/benchmarks/*.md", "infra/k8s/*.md")
    for path in sorted(ROOT.glob(pattern))
]
TEXTS = [*PAGES, *sorted((ROOT / "jobs").glob("*.py")), *sorted((ROOT / "jobs/configs").glob("*.yaml"))]
CONFIGS = {"finetune": "FinetuneJobConfig"}  # of other verbs: the capitalized verb and Config
COMMAND = re.compile(r"(?:python -m jobs\.|scene-dynamics )([a-z]+) +(\S.*)")
ARGUMENT = re.compile(r"""(?:"[^"]*"|'[^']*'|[^\s"'`])+""")


def documented_commands(path: Path) -> list[tuple[str, ...]]:
    """List (verb, arguments...) of the commands in shell blocks and code spans of a page, or in the lines of a file."""
    text = path.read_text()
    if path.suffix == ".md":
        blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        text = "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))])
    commands = []
    for line in text.replace("\\\n", " ").splitlines():
        for verb, rest in COMMAND.findall(line):
            arguments = [word for word in ARGUMENT.findall(rest.partition(" #")[0]) if word != "..."]
            if arguments and not arguments[0].startswith(("--", "{")):
                commands.append((verb, *arguments))
    return commands


def key_of(argument: str) -> str:
    """Return the key of `key=value`; empty if the argument has another form."""
    match = re.match(r"""["']?([\w.]+)=""", argument)
    return match[1] if match else ""


def unknown_keys(verb: str, arguments: list[str]) -> list[str]:
    """List the arguments' keys that the job lacks; arguments end at the first word that is not key=value."""
    job = importlib.import_module(f"jobs.{verb}")
    known = {key for key, *_ in cli.list_options(getattr(job, CONFIGS.get(verb, f"{verb.capitalize()}Config")))}
    if verb == "dataset" and arguments:
        verbs = arguments.pop(0).split("|")
        if unknown := [word for word in verbs if word not in job.VERBS]:
            return unknown
    keys = []
    for position, argument in enumerate(arguments):
        if not (key := key_of(argument)):
            if verb == "submit" and argument in VERBS:
                return keys + unknown_keys(argument, arguments[position + 1 :])
            break
        keys += [key] if key not in known | {"config"} else []
    return keys


COMMANDS = sorted({command for path in TEXTS for command in documented_commands(path)})


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_documented_command_uses_keys_that_exist(command: tuple[str, ...]) -> None:
    verb, *arguments = command
    assert unknown_keys(verb, arguments) == []


def test_commands_were_found_in_every_kind_of_document() -> None:
    found = {str(path.relative_to(ROOT)): len(documented_commands(path)) for path in TEXTS}
    assert len(COMMANDS) >= 60
    assert found["README.md"] >= 10
    assert found["jobs/README.md"] >= 25
    assert found["infra/k8s/README.md"] >= 1
    assert found["jobs/train.py"] >= 3
    assert {verb for verb, *_ in COMMANDS} >= set(VERBS) - {"demo"}


def test_unknown_keys_of_commands_are_found() -> None:
    assert unknown_keys("train", ["data=out/clips", "pieces=4"]) == ["pieces"]
    assert unknown_keys("dataset", ["status|burn", "data=out/clips"]) == ["burn"]
    assert unknown_keys("submit", ["dry_run=true", "train", "data=out/clips", "no_such_key=1"]) == ["no_such_key"]


@pytest.mark.parametrize("path", sorted((ROOT / "jobs/configs").glob("*.yaml")), ids=lambda path: path.name)
def test_named_run_loads_and_its_first_line_is_its_command(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    config = cli.load_config(FinetuneJobConfig if "jobs.finetune" in first else TrainConfig, [f"config={path}"])
    assert config.name == path.stem
    assert f"config=jobs/configs/{path.name}" in first
