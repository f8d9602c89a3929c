"""Verbs of jobs.dataset, and messages about actions of earlier versions."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import dataset
from jobs.cli import BAD_INPUT
from jobs.prepare import moved_action


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Function that runs a verb which must fail with exit code 2, and returns its one line on stderr."""

    def run(*arguments: str) -> str:
        assert dataset.main(list(arguments)) == BAD_INPUT
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    return run


def test_every_verb_requires_data(refused: Callable[..., str]) -> None:
    for verb in dataset.VERBS:
        assert "data= is required" in refused(verb)


def test_unknown_verb_names_the_nearest(refused: Callable[..., str]) -> None:
    assert "did you mean 'status'?" in refused("statsu", "data=x")
    assert "needs one of status, verify" in refused("data=x")


def test_delete_needs_names_and_a_dataset(refused: Callable[..., str], tmp_path: Path) -> None:
    data = f"data={tmp_path}/none"
    assert "names= is required" in refused("delete", data)
    assert "no dataset at data=" in refused("delete", data, "names=a.mp4")
    assert f"no list at '{tmp_path}/none.txt'" in refused("delete", data, f"names={tmp_path}/none.txt")
    assert "no dataset at" in refused("card", data)
    assert list(tmp_path.iterdir()) == []


def test_help_lists_the_verbs_and_the_options_of_one_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert dataset.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"python -m jobs.dataset {verb} " in text for verb in dataset.VERBS)
    assert dataset.main(["status", "--help=filters"]) == 0
    assert "filters.max_zoom=" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("action=status", "python -m jobs.dataset status data="),
        ("action=retry", "python -m jobs.prepare retry=REASON"),
        ("action=run", ""),
        ("sources=x", ""),
    ],
)
def test_actions_of_earlier_versions_report_the_new_command(argument: str, expected: str) -> None:
    assert expected in moved_action([argument])
    assert bool(expected) == bool(moved_action([argument]))


def test_jobs_module_runs_a_verb_and_suggests_the_nearest() -> None:
    def jobs(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "jobs", *arguments], capture_output=True, text=True, check=False)

    assert "finetune" in jobs("--help").stdout
    assert "did you mean 'train'?" in jobs("trian").stderr
    assert jobs("trian").returncode == BAD_INPUT
    listed = jobs("train", "--help")
    assert (listed.returncode, "gradient_accumulation_steps=1" in listed.stdout) == (0, True)
