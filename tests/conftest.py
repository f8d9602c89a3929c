"""Fixtures of every tier."""

from __future__ import annotations

import os
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
