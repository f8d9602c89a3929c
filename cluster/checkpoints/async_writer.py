"""Checkpoints leave a worker from a thread of its own, so that a step waits only while files are written locally."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from cluster.checkpoints import store
from cluster.storage.urls import join_url

log = logging.getLogger(__name__)


class AsyncCheckpointWriter:
    """One rank's side of saving a run. At most one checkpoint is on its way at a time."""

    def __init__(self, run_url: str, attempt: str, *, rank: int, world_size: int, prune: Callable[[], object]) -> None:
        """Args: `attempt` is the same on all ranks and new after each restart; `prune` removes old checkpoints."""
        self.run_url, self.attempt, self._prune = run_url, attempt, prune
        self.rank, self.world_size = rank, world_size
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def save(self, step: int, write: Callable[[Path], object], *, wait: bool) -> float:
        """Have `write` fill a local folder, and upload it; the seconds that training stood still for it.

        An upload that fails behind training's back is said, and the next one is waited for.

        Args:
            step: that the state belongs to.
            write: writes this rank's files into the folder it is given.
            wait: come back when they are on storage.

        Raises:
            InputError, OSError: the upload that was waited for failed, after several attempts.
        """
        began = time.perf_counter()
        wait |= not self._finished()
        scratch = Path(tempfile.mkdtemp(prefix="checkpoint-"))
        try:
            write(scratch)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        self._pending = self._thread.submit(self._upload, scratch, store.checkpoint_dirname(step, self.attempt))
        if wait:
            self.close()
        return time.perf_counter() - began

    def close(self) -> None:
        """Wait for the checkpoint that is on its way, if any. Raises what its upload raised."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _finished(self) -> bool:
        """Wait for the last upload; whether it went well."""
        try:
            self.close()
        except Exception as fault:  # noqa: BLE001 - whatever it was, training can go on: the next one will tell
            log.warning("a checkpoint was LOST (%s): training goes on, and waits for the next one", fault)
            return False
        return True

    def _upload(self, scratch: Path, name: str) -> None:
        try:
            store.upload_checkpoint(scratch, join_url(self.run_url, name), self.rank, self.world_size)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if self.rank == 0:
            try:
                self._prune()
            except Exception as fault:  # noqa: BLE001 - the new one is safe: the next will remove what this one did not
                log.warning("old checkpoints could not be removed (%s): the next one tries again", fault)
