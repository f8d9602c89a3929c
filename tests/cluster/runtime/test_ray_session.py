"""Ray sessions of jobs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

STOPPED = """
import os, signal, time
from dataclasses import dataclass
from cluster.runtime.ray_session import ray_session
from jobs import cli

@dataclass(frozen=True)
class Config:
    pass

def job(config):
    with ray_session():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

raise SystemExit(cli.run(job, Config, "", []))
"""


@pytest.mark.ray
def test_job_that_receives_sigterm_ends_as_interrupted() -> None:
    """Check Ray's SIGTERM handler is replaced: it would abort the process and leave its Ray running."""
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    result = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, text=True, env=env, check=False)
    assert (result.returncode, result.stderr) == (130, "interrupted\n")
