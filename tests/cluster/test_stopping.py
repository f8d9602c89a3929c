"""An interrupt asks the work to end itself, and waits for it; a second one does not."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from cluster.stopping import run_stoppable


def interrupt_soon(count: int = 1) -> None:
    """Send this process so many SIGINTs, as Ctrl-C does."""

    def send() -> None:
        for _ in range(count):
            time.sleep(0.2)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=send, daemon=True).start()


def test_run_stoppable_gives_what_the_work_gives_or_raises() -> None:
    def fail() -> None:
        raise ValueError("no")

    asked: list[str] = []
    assert run_stoppable(lambda: 7, asked.append) == 7
    with pytest.raises(ValueError, match="no"):
        run_stoppable(fail, asked.append)
    assert asked == []


def test_run_stoppable_on_an_interrupt_asks_and_still_waits() -> None:
    stop = threading.Event()

    def work() -> str:
        assert stop.wait(30)
        return "saved"

    interrupt_soon()
    assert run_stoppable(work, lambda _: stop.set()) == "saved"


def test_run_stoppable_on_a_second_interrupt_does_not_wait_any_longer() -> None:
    never, asked = threading.Event(), list[str]()
    interrupt_soon(2)
    with pytest.raises(KeyboardInterrupt):
        run_stoppable(lambda: never.wait(30), asked.append)
    assert asked == ["interrupted"]
    never.set()
