"""Records of resumable runs: key and settings that a restart must not change."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster.runtime.run_registry import register_run
from vgan.errors import InputError
from vgan.options import check_name, flatten

SETTINGS: dict[str, Any] = {
    "model": {"base_width": 64, "architecture": "two_stream"},
    "seed": 0,
    "initializations": ["vgan"],
    "rate": 2e-4,
}


def test_claim_again_with_the_same_settings_gives_the_same_key(tmp_path: Path) -> None:
    key = register_run(str(tmp_path / "gan"), "gan", SETTINGS)
    assert register_run(str(tmp_path / "gan"), "gan", {**SETTINGS, "model": dict(SETTINGS["model"])}) == key
    assert key.startswith("gan-")
    assert register_run(str(tmp_path / "other"), "gan", SETTINGS) != key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"base_width": 16, "architecture": "two_stream"}}, r"model\.base_width was 64, now 16"),
        ({"seed": 1}, "seed was 0, now 1"),
        ({"initializations": ["random"]}, "initializations was .*vgan.* now .*random"),
        ({"workers": 2}, "workers was None, now 2"),
        ({"model": {"base_width": 16}, "seed": 1}, r"model\.architecture .*; model\.base_width .*; seed was"),
    ],
)
def test_claim_with_other_settings_names_each_and_keeps_the_record(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    key = register_run(str(tmp_path), "gan", SETTINGS)
    with pytest.raises(InputError, match=message):
        register_run(str(tmp_path), "gan", SETTINGS | change)
    assert register_run(str(tmp_path), "gan", SETTINGS) == key


def test_claim_of_a_run_older_than_an_option_uses_the_options_default(tmp_path: Path) -> None:
    key = register_run(str(tmp_path / "gan"), "gan", SETTINGS)
    newer = SETTINGS | {"model": SETTINGS["model"] | {"norm": "batch"}}
    assert register_run(str(tmp_path / "gan"), "gan", newer, {"model": {"norm": "batch", "base_width": 8}}) == key
    newer = SETTINGS | {"model": SETTINGS["model"] | {"norm": "spectral"}}
    with pytest.raises(InputError, match=r"model\.norm was 'batch', now 'spectral'"):
        register_run(str(tmp_path / "gan"), "gan", newer, {"model": {"norm": "batch", "base_width": 8}})


def test_claim_of_many_at_once_agrees_on_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: register_run(str(tmp_path), "gan", SETTINGS), range(8)))
    assert len(keys) == 1


@pytest.mark.parametrize("name", ["gan", "a.b-c_1", "_x", "7"])
def test_check_name_allows_plain_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "..", "-x", "a/b", "a b", "a'b", "caf\u00e9", "a\n"])
def test_check_name_rejects_names_invalid_in_paths_and_queries(name: str) -> None:
    with pytest.raises(ValueError, match="name may hold"):
        check_name(name)


def test_flatten_dots_nested_keys() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [1]}, "e": None}) == {"a.b.c": 1, "a.d": [1], "e": None}
