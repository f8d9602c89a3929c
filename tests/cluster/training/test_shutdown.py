"""An interrupt asks the work to end itself, and waits for it; a second one does not."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from cluster.training.shutdown import run_interruptible


def interrupt_soon(*numbers: signal.Signals) -> None:
    """Send this process the signals, one after the other."""

    def send() -> None:
        for number in numbers:
            time.sleep(0.2)
            signal.pthread_kill(threading.main_thread().ident or 0, number)

    threading.Thread(target=send, daemon=True).start()


def test_run_stoppable_gives_what_the_work_gives_or_raises() -> None:
    def fail() -> None:
        raise ValueError("no")

    asked: list[str] = []
    assert run_interruptible(lambda: 7, asked.append) == 7
    with pytest.raises(ValueError, match="no"):
        run_interruptible(fail, asked.append)
    assert asked == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_run_stoppable_on_an_interrupt_asks_and_still_waits(number: signal.Signals) -> None:
    stop, before = threading.Event(), signal.getsignal(number)

    def work() -> str:
        assert stop.wait(30)
        return "saved"

    interrupt_soon(number)
    assert run_interruptible(work, lambda _: stop.set()) == "saved"
    assert signal.getsignal(number) is before


def test_run_stoppable_on_a_second_interrupt_does_not_wait_any_longer() -> None:
    never, asked = threading.Event(), list[str]()
    interrupt_soon(signal.SIGINT, signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run_interruptible(lambda: never.wait(30), asked.append)
    assert asked == ["interrupted"]
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


def test_must_go_on_ends_a_process_that_hangs_and_tells_where() -> None:
    done = subprocess.run([sys.executable, "-c", SLOW_STEP, "hang"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "steps done\n")
    assert "Timeout" in done.stderr
    assert 'File "<string>", line 10' in done.stderr


def test_must_go_on_lets_a_process_be_that_takes_its_steps() -> None:
    done = subprocess.run([sys.executable, "-c", SLOW_STEP, "go"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "steps done\nended\n")
