"""Where a job runs: the Ray cluster it was submitted to, or a local Ray that it starts and stops itself."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from vgan.errors import BadInput


@contextmanager
def ray_session(address: str = "") -> Iterator[bool]:
    """Connect to Ray for the length of a job.

    Args:
        address: a cluster's address. Empty: the cluster this job was submitted to, else a new local Ray.

    Yields:
        Whether it is a local Ray of this job's own, which cannot get more nodes.

    Raises:
        BadInput: nothing answers at the address.
    """
    if ray.is_initialized():  # a caller's session, not ours to end
        yield False
        return
    address = address or os.environ.get("RAY_ADDRESS", "")
    if address:
        _check_answers(address)
        try:
            _start(address=address)
        except (ConnectionError, ValueError, RuntimeError) as fault:
            raise BadInput(f"no Ray cluster answers at address={address!r}: {fault}") from fault
    else:
        # Ray turns token authentication on by itself; a token of this job alone spares the one it would keep, readable
        # by everyone, in the home folder.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        print("no Ray cluster given: starting a local one for this job", flush=True)
        # Ray Train watches its controller through the dashboard's state API, so the dashboard runs, on this host only
        # "local": without it Ray joins any cluster that was ever started on this machine
        _start(address="local", include_dashboard=True, dashboard_host="127.0.0.1")
    try:
        yield not address
    finally:
        ray.shutdown()


def _start(**options: Any) -> None:
    """`ray.init`, after which SIGTERM does what it did before: Ray's own handler aborts the process."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options, logging_level="ERROR", log_to_driver=True)
    except SystemExit as stop:  # that handler's, before the other is set
        raise KeyboardInterrupt from stop
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def require_room(what: str, way_out: str = "", *, cpus: float, gpus: float = 0.0) -> None:
    """Raise BadInput where a Ray that cannot grow has no room for `what`: it would wait for ever.

    Args:
        what: "a run", for people.
        way_out: what else to lower, beside cpus= or gpus=.
    """
    there = ray.cluster_resources()
    for key, kind, needed in (("cpus", "CPU", cpus), ("gpus", "GPU", gpus)):
        if needed > there.get(kind, 0):
            raise BadInput(
                f"{what} needs {needed:g} {kind}s, and there are {there.get(kind, 0):g}: lower {key}={way_out}"
            )


def _check_answers(address: str) -> None:
    """Raise BadInput unless something listens at "host:port": Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto" and its like; Ray knows at once
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as fault:
        raise BadInput(f"no Ray cluster answers at address={address!r}: {fault}") from fault
