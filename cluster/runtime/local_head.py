"""Local Ray head with token authentication, and submission of jobs to it.

Uses the same commands as a cluster: `ray start --head` and `ray job submit`.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.runtime.job_submission import RAY, client_env, list_jobs, submit_command
from vgan.errors import InputError

START_TIMEOUT_S, STOP_TIMEOUT_S = 90.0, 20.0


@dataclass(frozen=True)
class Head:
    """Running Ray head."""

    address: str  # URL of the jobs API and the dashboard
    token_file: Path

    def environment(self) -> dict[str, str]:
        """Return the environment of an authenticated client of the head."""
        return {**client_env(), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file)}

    def submit_command(self, name: str, words: Sequence[str]) -> list[str]:
        """Build the `ray job submit` command for `python -m <words>`.

        Args:
            name: The job's submission id.
            words: A module and its arguments.
        """
        return submit_command(self.address, name, words, python=sys.executable)

    def submit(self, name: str, words: Sequence[str], log: Path, on_line: Callable[[str], None]) -> bool:
        """Submit a job and follow its output until it ends.

        Args:
            name: The job's submission id.
            words: A module and its arguments.
            log: File for the output; overwritten.
            on_line: Called with each line of the output.

        Returns:
            True if the job succeeded.
        """
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen(
                self.submit_command(name, words),
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # so that Ctrl-C reaches this process only
            )
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    file.write(line)
                    on_line(line.rstrip("\n"))
                return process.wait() == 0
            finally:
                _terminate(process)

    def jobs(self) -> list[dict[str, Any]]:
        """List the submitted jobs, oldest first, with the fields of `ray job list`: submission_id, status, ..."""
        return list_jobs(self.address, self.token_file.read_text().strip())

    def refuses_without_token(self) -> bool:
        """Return True if the head rejects a `ray job submit` without the token."""
        env = {**client_env(), "RAY_AUTH_MODE": "disabled", "HOME": "/nonexistent"}
        result = subprocess.run(
            [RAY, "job", "submit", "--address", self.address, "--", "true"],
            timeout=60,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        return result.returncode != 0 and "authentication" in (result.stdout + result.stderr).lower()


@contextmanager
def local_head(folder: Path, *, num_cpus: int, dashboard_port: int = 0) -> Iterator[Head]:
    """Run a head for the duration of a block; then stop it and every process it started.

    Args:
        folder: Folder for the token (readable by its owner only) and the head's log.
        num_cpus: Number of CPUs that the head offers.
        dashboard_port: Port of the jobs API, on this host only; 0 picks a free one.

    Yields:
        The running head.

    Raises:
        InputError: The port is taken, or the head does not start.
    """
    check_port(dashboard_port)
    folder.mkdir(parents=True, exist_ok=True)
    token_file = folder / "token"
    token_file.unlink(missing_ok=True)
    with open(os.open(token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    port, dashboard, client, agent = _free_ports(4)
    dashboard = dashboard_port or dashboard
    head = Head(f"http://127.0.0.1:{dashboard}", token_file)
    command = [
        RAY,
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        "--node-ip-address=127.0.0.1",
        f"--num-cpus={num_cpus}",
    ]
    command += [f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    command += [
        f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}",
        "--object-store-memory=1000000000",
    ]
    with open(folder / "head.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command,
            env=head.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_until_up(process, head, folder / "head.log")
            yield head
        finally:
            _terminate(process)
            token_file.unlink(missing_ok=True)


def _wait_until_up(process: subprocess.Popen[Any], head: Head, log: Path) -> None:
    """Wait until the jobs API answers; raise InputError if the process ends or START_TIMEOUT_S pass before."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            head.jobs()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    reason = (
        f"it ended with code {process.poll()}"
        if process.poll() is not None
        else f"it did not answer within {START_TIMEOUT_S:.0f} s"
    )
    raise InputError(f"the local Ray head did not start: {reason}; its log is {log}")


def _terminate(process: subprocess.Popen[Any]) -> None:
    """Terminate a process (`ray start` ends its own children), and kill its group after STOP_TIMEOUT_S."""
    previous_handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave processes running
    try:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finally:
        signal.signal(signal.SIGINT, previous_handler)


def check_port(port: int) -> None:
    """Raise InputError unless `port` is 0 (a free one is picked) or a free port of this host."""
    if not 0 <= port < 65536:
        raise InputError(f"dashboard_port={port} is no port: give 1 to 65535, or 0 to pick a free one")
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(f"dashboard_port={port} is taken: give a free one, or 0 to pick one") from error


def _free_ports(count: int) -> list[int]:
    """Return ports of this host on which no process listens now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
