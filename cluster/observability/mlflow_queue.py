"""A queue of metrics, pictures and tags for an MLflow run, sent in the background."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from cluster.observability.mlflow_tracker import TRACKING_EXCEPTIONS, Run, is_refusal, metric_points
from cluster.observability.tracking_config import TrackingConfig as TrackingConfig
from vgan.errors import first_line

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)
RETRY_S = 5.0
MAX_ENTRIES = 500  # queued while the server is unreachable
# Metric values per entry: a full queue holds 8,000 log steps of 30 metrics, 80 MB. A server accepts 1,000 at once.
MAX_POINTS = 500


class MlflowQueue:
    """Queue that sends a run's log entries in order from a background thread, so that training never waits for MLflow.

    While the server does not answer, entries are queued and retried; one warning is logged when it stops answering and
    one when it answers again. Entries that the server refuses are dropped with a warning.

    Args:
        run: The run that receives the entries.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._entries: deque[Callable[[], None]] = deque(maxlen=MAX_ENTRIES)
        self._changed = threading.Condition()  # reentrant
        self._open: partial[None] | None = None  # the entry that collects metrics, as long as it is not the first
        self._full = self._closing = False
        self._thread = threading.Thread(target=self._send_all, daemon=True)
        self._thread.start()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Queue scalars of one step, by metric name."""
        new_points = metric_points(values, step)
        with self._changed:
            if (
                self._open is None
                or self._open is self._entries[0]
                or len(self._open.args[0]) + len(new_points) > MAX_POINTS
            ):
                self._open = partial(self.run.points, [])
                self._put(self._open)
            self._open.args[0].extend(new_points)

    def image(self, pixels: np.ndarray, key: str, step: int) -> None:
        """Queue an RGB image (H, W, 3), uint8."""
        self._put(partial(self.run.image, pixels, key, step))

    def set_tags(self, **tags: str) -> None:
        """Queue tags of the run."""
        self._put(partial(self.run.set_tags, **tags))

    def close(self, patience_s: float = 30.0) -> None:
        """Send the remaining entries; drop them with a warning once none was sent for `patience_s` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        num_remaining = MAX_ENTRIES + 1
        while self._thread.is_alive() and len(self._entries) < num_remaining:
            num_remaining = len(self._entries)
            self._thread.join(patience_s)
        if self._entries:
            log.warning("MLflow still does not answer: %d entries of the run are lost", len(self._entries))

    def _put(self, entry: Callable[[], None]) -> None:
        """Append an entry; if the queue is full, drop the oldest."""
        with self._changed:
            if len(self._entries) == MAX_ENTRIES and not self._full:
                log.warning("MLflow has not answered for a long time: the oldest entries of the run are lost")
            self._full = len(self._entries) == MAX_ENTRIES
            if self._full:
                self._remove_first()
            self._entries.append(entry)
            self._changed.notify_all()

    def _remove_first(self) -> None:
        """Remove the oldest entry."""
        if self._entries.popleft() is self._open:
            self._open = None

    def _send_all(self) -> None:
        """Send entries until the queue is closed and empty (the background thread)."""
        unreachable = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._entries or self._closing)
                if not self._entries:
                    return
                entry = self._entries[0]
            try:
                entry()
            except TRACKING_EXCEPTIONS as error:
                if not is_refusal(error):
                    if not unreachable:
                        log.warning("MLflow does not answer: its entries are queued (%s)", first_line(error))
                    unreachable = True
                    time.sleep(RETRY_S)
                    continue
                log.warning("MLflow refuses an entry: %s", first_line(error))
            with self._changed:
                if self._entries and self._entries[0] is entry:  # else a full queue has dropped it
                    self._remove_first()
            if unreachable:
                log.warning("MLflow answers again: sending the queued entries")
            unreachable = False
