"""A Ray head on this machine for the length of a block, with token authentication, and jobs submitted to it.

What `ray start --head` and `ray job submit` do on a cluster, done here by the same commands.
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

from cluster.submission import RAY, client_environment, submit_command, submitted_jobs
from vgan.errors import BadInput

START_TIMEOUT_S, STOP_TIMEOUT_S = 90.0, 20.0


@dataclass(frozen=True)
class Head:
    """A running head."""

    address: str  # of the jobs API and dashboard
    token_file: Path

    def environment(self) -> dict[str, str]:
        """What a client needs to be let in."""
        return {**client_environment(), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file)}

    def submit_command(self, name: str, words: Sequence[str]) -> list[str]:
        """The `ray job submit` line for `python -m <words>`."""
        return submit_command(self.address, name, words, python=sys.executable)

    def submit(self, name: str, words: Sequence[str], log: Path, on_line: Callable[[str], None]) -> bool:
        """Submit a job, follow its output to its end, and say whether it succeeded."""
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen(
                self.submit_command(name, words),
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C is for us to handle, once
            )
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    file.write(line)
                    on_line(line.rstrip("\n"))
                return process.wait() == 0
            finally:
                _end(process)

    def jobs(self) -> list[dict[str, Any]]:
        """What `ray job list` shows: submission id and status of each job, oldest first."""
        return submitted_jobs(self.address, self.token_file.read_text().strip())

    def refuses_without_token(self) -> bool:
        """Whether the same `ray job submit` without the token is turned away."""
        env = {**client_environment(), "RAY_AUTH_MODE": "disabled", "HOME": "/nonexistent"}
        found = subprocess.run(
            [RAY, "job", "submit", "--address", self.address, "--", "true"],
            timeout=60,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        return found.returncode != 0 and "authentication" in (found.stdout + found.stderr).lower()


@contextmanager
def local_head(folder: Path, *, num_cpus: int, dashboard_port: int = 0) -> Iterator[Head]:
    """Start a head, and stop it and everything it started when the block ends, however it ends.

    Args:
        folder: for the token (readable by its owner alone) and the head's log.
        num_cpus: CPUs it offers.
        dashboard_port: of the jobs API, on this host only; 0 picks a free one.

    Raises:
        BadInput: the port is taken, or the head does not come up.
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
            _end(process)
            token_file.unlink(missing_ok=True)


def _wait_until_up(process: subprocess.Popen[Any], head: Head, log: Path) -> None:
    """Wait for the jobs API to answer."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            head.jobs()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    why = (
        f"ended with code {process.poll()}"
        if process.poll() is not None
        else f"gave no sign for {START_TIMEOUT_S:.0f} s"
    )
    raise BadInput(f"the local Ray head did not come up, it {why}; its log is {log}")


def _end(process: subprocess.Popen[Any]) -> None:
    """End a process and its group: asked first, killed if it does not listen. `ray start` ends its own children."""
    impatient = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave the rest running
    try:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finally:
        signal.signal(signal.SIGINT, impatient)


def check_port(port: int) -> None:
    """Raise BadInput unless `port` is 0 (pick one) or free."""
    if not 0 <= port < 65536:
        raise BadInput(f"dashboard_port={port} is no port: give 1 to 65535, or 0 to have a free one picked")
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as fault:
            raise BadInput(f"dashboard_port={port} is taken: give a free one, or 0 to have one picked") from fault


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
