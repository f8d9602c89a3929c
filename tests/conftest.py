"""Fixtures of every tier."""

from __future__ import annotations

import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real test videos and weights beside the checkout; never part of it."""
    if not (SHARED / "data").is_dir():
        message = f"real test data not found at {SHARED}"
        if os.environ.get("CI"):
            pytest.fail(f"{message}; in CI these tests must run")
        pytest.skip(message)
    return SHARED


@pytest.fixture(scope="session")
def ray_token() -> Iterator[str]:
    """One token for every Ray of the session: a process keeps the first that it has used. Without one Ray would write
    its own, readable by all, into the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        yield os.environ["RAY_AUTH_TOKEN"]


@pytest.fixture(scope="session")
def ray_cluster(ray_token: str) -> Iterator[None]:
    """The one local Ray of the session, on two cores. Tests that use it carry the mark `ray`."""
    import ray  # the default tier does without it

    assert os.environ["RAY_AUTH_TOKEN"] == ray_token
    ray.init("local", num_cpus=2, include_dashboard=True, dashboard_host="127.0.0.1", logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def scrape(ray_cluster: None) -> Callable[[], str]:  # noqa: ARG001
    """Reads what the session's Ray tells Prometheus; nothing while its node is too busy to answer."""
    import ray

    def text() -> str:
        port = ray.nodes()[0]["MetricsExportPort"]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
                return answer.read().decode()
        except (urllib.error.HTTPError, TimeoutError):
            return ""

    return text
