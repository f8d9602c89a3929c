"""Ray, as jobs start it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

STOPPED = """
import os, signal, time
from dataclasses import dataclass
from cluster.session import ray_session
from jobs import command

@dataclass(frozen=True)
class Config:
    pass

def job(config):
    with ray_session():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

raise SystemExit(command.run(job, Config, "", []))
"""


@pytest.mark.ray
def test_job_that_is_sent_sigterm_ends_as_an_interrupted_one() -> None:
    """Ray's own handler would abort the process, and its Ray would be left to itself."""
    outside = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, text=True, env=outside, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
