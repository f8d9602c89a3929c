"""Grouping of a sweep's results by figure."""

from __future__ import annotations

from typing import Any

from cluster.transfer.sweep_results import group_by_protocol


def row(split: int, init: str = "vgan", protocol: str = "1clip") -> dict[str, Any]:
    return {"split": split, "init": init, "fraction": 1.0, "seed": 0, "protocol": f"ucf101-split{split}_{protocol}"}


def test_rows_of_one_split_are_grouped_by_protocol() -> None:
    rows = [row(1), row(1, "random"), row(1, protocol="10clip")]
    assert group_by_protocol(rows) == {"ucf101-split1_1clip": rows[:2], "ucf101-split1_10clip": rows[2:]}


def test_mean_of_splits_contains_only_runs_that_exist_on_all_splits() -> None:
    rows = [row(1), row(2), row(1, "random"), row(2, protocol="10clip")]
    groups = group_by_protocol(rows)
    assert groups["ucf101-mean-of-splits-1-2_1clip"] == rows[:2]  # random has not run on split 2 yet
    assert not any("mean" in name and "10clip" in name for name in groups)
