"""Commands in the README, in help texts and in the named configurations are valid."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from cluster.training.config import TrainConfig
from jobs import cli
from jobs.finetune import FinetuneJobConfig

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [ROOT / "README.md", *sorted((ROOT / "jobs").glob("*.py")), *sorted((ROOT / "jobs/configs").glob("*.yaml"))]
COMMANDS = sorted(
    {
        line
        for path in TEXTS
        for line in re.findall(r"python -m (jobs\.[a-z]+(?: [a-z]+(?= ))?(?: [\w.]+=[^\s`|]+)+)", path.read_text())
    }
)


@pytest.mark.parametrize("line", COMMANDS)
def test_documented_command_uses_keys_that_exist(line: str) -> None:
    module, *arguments = line.split()
    names = {"jobs.train": "TrainConfig", "jobs.finetune": "FinetuneJobConfig"}
    job = importlib.import_module(module)
    config_class = getattr(job, names.get(module, f"{module.removeprefix('jobs.').capitalize()}Config"))
    options = {key for key, *_ in cli.list_options(config_class)}
    if module == "jobs.dataset":
        assert arguments.pop(0) in job.VERBS
    if module == "jobs.submit":
        arguments = arguments[
            : next((n for n, argument in enumerate(arguments) if "=" not in argument), len(arguments))
        ]
    keys = [argument.partition("=")[0] for argument in arguments]
    assert [key for key in keys if key not in options | {"config"}] == []


def test_documents_contain_commands() -> None:
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("path", sorted((ROOT / "jobs/configs").glob("*.yaml")), ids=lambda path: path.name)
def test_named_run_loads_and_its_first_line_is_its_command(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    config = cli.load_config(FinetuneJobConfig if "jobs.finetune" in first else TrainConfig, [f"config={path}"])
    assert config.name == path.stem
    assert f"config=jobs/configs/{path.name}" in first


def test_readme_names_only_functions_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    line = text[text.index("## The straight line") : text.index("## Jobs")]
    names = re.findall(r"\b((?:vgan|cluster|jobs)(?:\.\w+)+)", line)
    assert len(names) > 15
    for name in names:
        if name.count(".") == 1:
            importlib.import_module(name)
        else:
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute), name
