"""Graceful shutdown: the first interrupt requests a stop and waits, the second does not; watchdog against hangs."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from cluster.training.shutdown import run_interruptible


def interrupt_soon(*numbers: signal.Signals) -> None:
    """Send signals to this process, one after the other."""

    def send() -> None:
        for number in numbers:
            time.sleep(0.2)
            signal.pthread_kill(threading.main_thread().ident or 0, number)

    threading.Thread(target=send, daemon=True).start()


def test_run_stoppable_returns_the_result_or_raises_the_exception() -> None:
    def fail() -> None:
        raise ValueError("no")

    requests: list[str] = []
    assert run_interruptible(lambda: 7, requests.append) == 7
    with pytest.raises(ValueError, match="no"):
        run_interruptible(fail, requests.append)
    assert requests == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_run_stoppable_requests_a_stop_on_the_first_interrupt_and_waits(number: signal.Signals) -> None:
    stop, before = threading.Event(), signal.getsignal(number)

    def work() -> str:
        assert stop.wait(30)
        return "saved"

    interrupt_soon(number)
    assert run_interruptible(work, lambda _: stop.set()) == "saved"
    assert signal.getsignal(number) is before


def test_run_stoppable_raises_on_the_second_interrupt() -> None:
    never, requests = threading.Event(), list[str]()
    interrupt_soon(signal.SIGINT, signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run_interruptible(lambda: never.wait(30), requests.append)
    assert requests == ["interrupted"]
    never.set()


SLOW_STEP = """
import sys, time
from cluster.training.shutdown import watchdog
with watchdog(3.0) as going_on:
    for step in range(5):
        going_on()
        time.sleep(0.4)
    print("steps done", flush=True)
    if sys.argv[1] == "hang":
        time.sleep(60)
time.sleep(4)
print("ended", flush=True)
"""


def test_must_go_on_exits_a_hanging_process_with_a_traceback() -> None:
    result = subprocess.run([sys.executable, "-c", SLOW_STEP, "hang"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (1, "steps done\n")
    assert "Timeout" in result.stderr
    assert 'File "<string>", line 10' in result.stderr


def test_must_go_on_does_not_exit_a_process_that_makes_steps() -> None:
    result = subprocess.run([sys.executable, "-c", SLOW_STEP, "go"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "steps done\nended\n")
