"""How a run that shall end hears of it in time to save: from its driver, by a signal, or from Ray when a node goes."""

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

NOTICE_EVERY_S = 5.0  # as often as Ray itself looks for nodes that are being drained


_TERMINATED = threading.Event()  # whether this process was sent SIGTERM


class GracefulTorchConfig(TorchConfig):
    """torch's process group, and workers that note a SIGTERM instead of ending at once, as Ray would have them."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _GracefulTorchBackend


class _GracefulTorchBackend(_TorchBackend):
    def on_training_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        super().on_training_start(worker_group, backend_config)
        worker_group.execute(_install_sigterm_flag)


def _install_sigterm_flag() -> None:
    """Runs in a worker's main thread, the only one that may; training runs in another."""
    signal.signal(signal.SIGTERM, lambda *_: _TERMINATED.set())


class StopSignal:
    """What the driver tells the workers by: an actor."""

    def __init__(self) -> None:
        self._reason = ""
        self._asked = asyncio.Event()

    async def ask(self, reason: str) -> None:
        """Ask the workers to save and stop."""
        self._reason = reason
        self._asked.set()

    async def wait(self) -> str:
        """The reason, once there is one."""
        await self._asked.wait()
        return self._reason


def create_stop_signal() -> Any:
    """Handle of a new StopSignal, on the driver's node, so that no other node takes it along."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(StopSignal).remote()


class StopMonitor:
    """A worker's view: whether it was asked to stop, and whether its group should look for a notice of Ray's."""

    def __init__(self, asked: Any) -> None:
        """Args: the StopSignal's handle on rank 0; None on others, which hear of it from rank 0."""
        self.reason = ""
        self._leads, self._looked, self._nodes = asked is not None, time.monotonic(), set[str]()
        if asked is not None:
            threading.Thread(target=self._listen, args=(asked,), daemon=True).start()

    def _listen(self, asked: Any) -> None:
        try:
            self.reason = ray.get(asked.wait.remote())
        except ray.exceptions.RayError:  # the driver is gone, and Ray ends this worker
            return

    def terminated(self) -> bool:
        """Whether this very worker was sent SIGTERM."""
        return _TERMINATED.is_set()

    def due(self) -> bool:
        """Whether it is time to ask Ray: the question is a barrier over all workers, too dear for every step."""
        if not self._leads or time.monotonic() - self._looked < NOTICE_EVERY_S:
            return False
        self._looked = time.monotonic()
        return True

    def new_notice(self) -> bool:
        """Whether Ray is about to take a node that it had not named before. Every rank must call it."""
        info = ray.train.get_preemption_info()
        nodes = set(info.preempted_node_ids) if info else set()
        new = bool(nodes - self._nodes)
        self._nodes |= nodes
        return new


@contextmanager
def watchdog(seconds: float) -> Iterator[Callable[[], None]]:
    """In the block, this process ends, telling where each of its threads stands, unless what is yielded is called again
    within so many seconds. What a worker waits for may not come: another worker, or a store. Timeouts of collectives do
    not notice in time: the groups that DeepSpeed makes wait for half an hour, whatever the first one was made with."""

    def going_on() -> None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)

    going_on()
    try:
        yield going_on
    finally:
        faulthandler.cancel_dump_traceback_later()


def run_interruptible(work: Callable[[], T], ask_to_stop: Callable[[str], object]) -> T:
    """What `work` returns. The first interrupt asks it to stop, and it is still waited for; a second one ends it.

    It runs in a thread of its own, because Ray Train would otherwise answer an interrupt itself, without saving. Ray
    also takes SIGTERM, and ends the process three seconds later. Call it in the main thread, with Ray started.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as fault:  # noqa: BLE001 - raised again in the caller's thread
            done.set_exception(fault)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in signals}
    try:
        threading.Thread(target=run, daemon=True).start()
        try:
            return done.result()
        except KeyboardInterrupt:
            if done.done():
                raise
            ask_to_stop("interrupted")
            return done.result()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
