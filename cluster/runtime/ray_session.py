"""Ray session of a job: the cluster it was submitted to, or a local Ray that it starts and stops itself."""

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

from vgan.errors import InputError


@contextmanager
def ray_session(address: str = "") -> Iterator[bool]:
    """Connect to Ray for the duration of a job.

    Args:
        address: Address of a cluster. Empty: the cluster this job was submitted to, else a new local Ray.

    Yields:
        True for a new local Ray, which cannot grow by nodes.

    Raises:
        InputError: No cluster answers at the address.
    """
    if ray.is_initialized():  # the caller's session, which the caller ends
        yield False
        return
    address = address or os.environ.get("RAY_ADDRESS", "")
    if address:
        _check_reachable(address)
        try:
            _init_ray(address=address)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"no Ray cluster answers at address={address!r}: {error}") from error
    else:
        # Ray enables token authentication by default; a token for this job alone avoids the one that Ray would store,
        # readable by everyone, in the home folder.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        print("no Ray cluster given: starting a local one for this job", flush=True)
        # The dashboard runs, on this host only, because Ray Train monitors its controller through its state API.
        # "local": without it, Ray would join any cluster that was ever started on this machine.
        _init_ray(address="local", include_dashboard=True, dashboard_host="127.0.0.1")
    try:
        yield not address
    finally:
        ray.shutdown()


def _init_ray(**options: Any) -> None:
    """Call `ray.init` and restore the previous SIGTERM handler: Ray's own aborts the process."""
    previous_handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options, logging_level="ERROR", log_to_driver=True)
    except SystemExit as stop:  # raised by Ray's handler before the previous one is restored
        raise KeyboardInterrupt from stop
    finally:
        if previous_handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, previous_handler)


def require_resources(what: str, way_out: str = "", *, cpus: float, gpus: float = 0.0) -> None:
    """Check that a Ray that cannot grow has the resources for a task; without them it would wait forever.

    Args:
        what: Subject of the error message, such as "a run".
        way_out: Text appended to the hint "lower cpus=" or "lower gpus=" of the error message.
        cpus: Required CPUs.
        gpus: Required GPUs.

    Raises:
        InputError: There are fewer CPUs or GPUs.
    """
    available = ray.cluster_resources()
    for key, resource, needed in (("cpus", "CPU", cpus), ("gpus", "GPU", gpus)):
        if needed > available.get(resource, 0):
            raise InputError(
                f"{what} needs {needed:g} {resource}s, and there are {available.get(resource, 0):g}: "
                f"lower {key}={way_out}"
            )


def _check_reachable(address: str) -> None:
    """Raise InputError unless a server listens at "host:port": Ray itself would retry for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto" and similar: Ray decides without a delay
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise InputError(f"no Ray cluster answers at address={address!r}: {error}") from error
