"""Common causes of failed downloads end a run and leave its videos uncommitted; single failures are committed."""

from __future__ import annotations

import random
from typing import Any

import pytest

from cluster.prepare.fetch_breaker import FetchBreaker
from cluster.sources.config import FetchConfig
from vgan.errors import InputError

FETCH = FetchConfig(window=40, max_failed_share=0.5)


def row(number: int, failure: str = "", remote: bool = True) -> dict[str, Any]:
    return {"remote": remote, "failure": failure, "url": str(number)}


def test_breaker_commits_single_failures_once_and_in_order() -> None:
    committed: list[str] = []
    breaker = FetchBreaker(FETCH, lambda done: committed.append(done["url"]))
    for number in range(100):
        breaker.update(row(number, "refused" if number % 3 == 0 else ""))
    assert committed == [str(n) for n in range(0, 61, 3)]
    breaker.finish()
    assert committed == [str(n) for n in range(0, 100, 3)]
    breaker.finish()
    assert len(committed) == 34


def test_breaker_ends_the_run_at_an_outage_and_commits_no_reject_of_it() -> None:
    committed: list[str] = []
    breaker = FetchBreaker(FETCH, lambda done: committed.append(done["url"]))
    for number in range(100):
        breaker.update(row(number, "dead host" if number == 7 else ""))
    for number in range(100, 120):
        breaker.update(row(number, "refused"))
    with pytest.raises(InputError, match=r"21 of the last 40 downloads failed, 21 of them with 'refused'.*to resume"):
        breaker.update(row(120, "refused"))
    assert committed == ["7"]


@pytest.mark.parametrize(("num", "failing", "ends"), [(20, 18, True), (20, 11, True), (20, 10, False), (19, 19, False)])
def test_breaker_judges_a_short_list_at_its_end(num: int, failing: int, ends: bool) -> None:
    committed: list[str] = []
    breaker = FetchBreaker(FETCH, lambda done: committed.append(done["url"]))
    for number in range(num):
        breaker.update(row(number, "refused" if number < failing else ""))
    assert not committed
    if ends:
        with pytest.raises(InputError, match=f"{failing} of the last {num} downloads failed"):
            breaker.finish()
    else:
        breaker.finish()
    assert len(committed) == (0 if ends else failing)


def test_breaker_ignores_local_files_and_without_a_limit_commits_all() -> None:
    committed: list[str] = []
    breaker = FetchBreaker(FetchConfig(window=20, max_failed_share=1), lambda done: committed.append(done["url"]))
    for number in range(60):
        breaker.update(row(number, "refused"))
        breaker.update(row(-1, remote=False))
    breaker.finish()
    assert committed == [str(n) for n in range(60)]


def test_breaker_permits_a_tenth_of_dead_hosts_in_a_long_run() -> None:
    rng = random.Random(0)
    committed: list[str] = []
    breaker = FetchBreaker(FetchConfig(), lambda done: committed.append(done["url"]))
    failed = [number for number in range(100_000) if rng.random() < 0.1]
    refused = set(failed)
    for number in range(100_000):
        breaker.update(row(number, "refused" if number in refused else ""))
    breaker.finish()
    assert committed == [str(number) for number in failed]


def test_fetch_config_refuses_values_without_meaning() -> None:
    for key, value in (
        ("attempts", 0),
        ("idle_s", 0.0),
        ("max_failed_share", 0.0),
        ("window", 19),
        ("max_pause_s", -1),
    ):
        with pytest.raises(ValueError, match=f"fetch.{key}"):
            FetchConfig(**{key: value})
