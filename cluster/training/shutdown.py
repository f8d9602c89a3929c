"""Graceful shutdown of training: driver requests, signals, node preemption, and a watchdog against hangs."""

from __future__ import annotations

import asyncio
import faulthandler
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
import ray.train
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

T = TypeVar("T")

NOTICE_EVERY_S = 5.0  # the interval at which Ray itself polls for draining nodes


_TERMINATED = threading.Event()  # set once this process receives SIGTERM


class GracefulTorchConfig(TorchConfig):
    """Torch process group whose workers record a SIGTERM instead of exiting at once, which is Ray's default."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Backend that installs the signal handler."""
        return _GracefulTorchBackend


class _GracefulTorchBackend(_TorchBackend):
    """Torch backend that installs a SIGTERM handler on every worker."""

    def on_training_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Set up the workers as Ray does, and install the handler on each."""
        super().on_training_start(worker_group, backend_config)
        worker_group.execute(_install_sigterm_flag)


def _install_sigterm_flag() -> None:
    """Install the SIGTERM handler; runs in a worker's main thread, as Python requires, beside the training thread."""
    signal.signal(signal.SIGTERM, lambda *_: _TERMINATED.set())


class StopSignal:
    """Stop request from the driver to the workers, an actor."""

    def __init__(self) -> None:
        self._reason = ""
        self._asked = asyncio.Event()

    async def ask(self, reason: str) -> None:
        """Request that the workers save and stop."""
        self._reason = reason
        self._asked.set()

    async def wait(self) -> str:
        """Wait for the request and return its reason."""
        await self._asked.wait()
        return self._reason


def create_stop_signal() -> Any:
    """Start a StopSignal on the driver's node, so that it survives the loss of any other node; return its handle."""
    driver_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=driver_node)(StopSignal).remote()


class StopMonitor:
    """Reasons to stop as one worker knows them: a driver request, SIGTERM, and preemption notices of Ray."""

    def __init__(self, asked: Any) -> None:
        """Start to listen for the driver's request.

        Args:
            asked: handle of the StopSignal on rank 0; None on other ranks, which are notified by rank 0.
        """
        self.reason = ""
        self._leads, self._polled_at, self._nodes = asked is not None, time.monotonic(), set[str]()
        if asked is not None:
            threading.Thread(target=self._listen, args=(asked,), daemon=True).start()

    def _listen(self, stop_signal: Any) -> None:
        """Wait for the driver's request and store its reason."""
        try:
            self.reason = ray.get(stop_signal.wait.remote())
        except ray.exceptions.RayError:  # the driver has died, and Ray ends this worker
            return

    def received_sigterm(self) -> bool:
        """Return True once this worker has received SIGTERM."""
        return _TERMINATED.is_set()

    def should_poll(self) -> bool:
        """Return True on rank 0 every NOTICE_EVERY_S: `new_notice` is a barrier over all workers, too slow per step."""
        if not self._leads or time.monotonic() - self._polled_at < NOTICE_EVERY_S:
            return False
        self._polled_at = time.monotonic()
        return True

    def new_preemption_notice(self) -> bool:
        """Return True if Ray announces the preemption of a node for the first time. Every rank must call it."""
        info = ray.train.get_preemption_info()
        nodes = set(info.preempted_node_ids) if info else set()
        new = bool(nodes - self._nodes)
        self._nodes |= nodes
        return new


@contextmanager
def watchdog(seconds: float) -> Iterator[Callable[[], None]]:
    """Exit this process with a traceback of every thread if the yielded function is not called in time.

    A worker may wait without end for another worker or for storage. Timeouts of collectives are too long: the groups
    that DeepSpeed creates wait for half an hour, independent of the timeout of the first group.

    Args:
        seconds: maximum time between two calls, and from the last call to the end of the block.

    Yields:
        Function that resets the timer.
    """

    def going_on() -> None:
        """Reset the timer."""
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)

    going_on()
    try:
        yield going_on
    finally:
        faulthandler.cancel_dump_traceback_later()


def run_interruptible(work: Callable[[], T], ask_to_stop: Callable[[str], object]) -> T:
    """Call `work` and return its result; the first interrupt requests a stop and waits, the second raises at once.

    `work` runs in a separate thread, because Ray Train would otherwise handle an interrupt itself, without saving. Ray
    also handles SIGTERM, and ends the process three seconds later. Call this in the main thread, after Ray has started.

    Args:
        work: function without arguments.
        ask_to_stop: makes `work` return soon; gets the reason.

    Raises:
        KeyboardInterrupt: second SIGINT, SIGTERM or SIGHUP, or one after `work` has returned.
    """
    result: Future[T] = Future()

    def run() -> None:
        """Store the result or the exception of `work`."""
        try:
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            result.set_exception(error)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in signals}
    try:
        threading.Thread(target=run, daemon=True).start()
        try:
            return result.result()
        except KeyboardInterrupt:
            if result.done():
                raise
            ask_to_stop("interrupted")
            return result.result()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
