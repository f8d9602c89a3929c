"""Asynchronous checkpoint writer: training waits for local files only, a thread uploads them."""

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
    """Checkpoint writer of one rank. At most one upload is pending at a time."""

    def __init__(self, run_url: str, attempt: str, *, rank: int, world_size: int, prune: Callable[[], object]) -> None:
        """Start the upload thread.

        Args:
            run_url: folder of the run.
            attempt: id, equal on all ranks and new after each restart.
            rank: of this worker.
            world_size: number of workers.
            prune: removes old checkpoints; called by rank 0 after each upload.
        """
        self.run_url, self.attempt, self._prune = run_url, attempt, prune
        self.rank, self.world_size = rank, world_size
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def save(self, step: int, write: Callable[[Path], object], *, wait: bool) -> float:
        """Write a checkpoint into a local folder and upload it in the background.

        If the previous upload failed, log a warning and wait for this one.

        Args:
            step: training step of the state.
            write: writes this rank's files into the folder passed to it.
            wait: return after the upload.

        Returns:
            Seconds that training was blocked.

        Raises:
            InputError, OSError: an upload that this call waited for failed, after several attempts.
        """
        began = time.perf_counter()
        wait |= not self._previous_succeeded()
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
        """Wait for the pending upload, if any, and raise its exception if it failed."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _previous_succeeded(self) -> bool:
        """Wait for the pending upload; return False and log a warning if it failed."""
        try:
            self.close()
        except Exception as error:  # noqa: BLE001 - training can continue; if the next one fails too, it raises
            log.warning("a checkpoint was LOST (%s): training continues, and waits for the next one", error)
            return False
        return True

    def _upload(self, scratch: Path, name: str) -> None:
        """Upload a local folder, delete it, and on rank 0 remove old checkpoints."""
        try:
            store.upload_checkpoint(scratch, join_url(self.run_url, name), self.rank, self.world_size)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if self.rank == 0:
            try:
                self._prune()
            except Exception as error:  # noqa: BLE001 - the new checkpoint is committed; the next save prunes again
                log.warning("cannot remove old checkpoints (%s): the next save tries again", error)
