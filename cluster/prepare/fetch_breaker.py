"""End of a run whose downloads fail for a common cause, so that an outage does not reject a corpus."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

from cluster.sources.config import MIN_WINDOW, FetchConfig
from vgan.errors import InputError


class FetchBreaker:
    """Decision whether failed downloads are faults of single videos or of the network.

    A unit whose download failed is not committed by its worker. This class commits its reject when `fetch.window`
    further downloads have finished and not too many of them failed, or at the end of the run. If it ends the run
    instead, the failed units in the window stay uncommitted, and the next run downloads them.

    Args:
        fetch: Size of the window and permitted share of failed downloads.
        commit: Function that commits the reject of a unit, from the row that `process_unit` returned.
    """

    def __init__(self, fetch: FetchConfig, commit: Callable[[Mapping[str, Any]], None]) -> None:
        self._fetch, self._commit = fetch, commit
        self._recent: deque[Mapping[str, Any]] = deque()
        self._failed = 0  # of them

    def update(self, row: Mapping[str, Any]) -> None:
        """Count one finished unit; local files, which are not downloaded, do not count.

        Raises:
            InputError: More than `fetch.max_failed_share` of the last `fetch.window` downloads failed.
        """
        if not row["remote"]:
            return
        self._recent.append(row)
        self._failed += bool(row["failure"])
        if len(self._recent) == self._fetch.window:
            self._check()
            self._release()

    def finish(self) -> None:
        """Commit the remaining rejects at the end of the units.

        Raises:
            InputError: More than `fetch.max_failed_share` of the last downloads failed, at least MIN_WINDOW of them.
        """
        if len(self._recent) >= MIN_WINDOW:
            self._check()
        while self._recent:
            self._release()

    def _release(self) -> None:
        """Remove the oldest download from the window, and commit its reject if it failed."""
        row = self._recent.popleft()
        if row["failure"]:
            self._failed -= 1
            self._commit(row)

    def _check(self) -> None:
        """Raise InputError if too many downloads in the window failed."""
        if self._failed > self._fetch.max_failed_share * len(self._recent):
            failures = Counter(row["failure"] for row in self._recent if row["failure"])
            (detail, num), *_ = failures.most_common(1)
            raise InputError(
                f"{self._failed} of the last {len(self._recent)} downloads failed, {num} of them with {detail!r}: "
                "check the network and the hosts and run the same command again to resume, "
                "or set fetch.max_failed_share=1 to reject such videos"
            )
