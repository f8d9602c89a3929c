"""Retries: of any operation, and of storage operations."""

from __future__ import annotations

import functools
import logging
import random
import time
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from cluster.storage.errors import is_transient, retryable_exceptions, user_error_for
from cluster.storage.urls import redact
from vgan.errors import first_line

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

# botocore tries a request 5 times in about 8 s, and s3fs repeats some failures 5 times more. An operation that fails in
# spite of both is attempted 4 times in all, with pauses of 1, 2 and 4 s, which bridges an outage of half a minute.
ATTEMPTS, BACKOFF_S = 4, 1.0


def retry(
    operation: Callable[[], R],
    name: str,
    *,
    attempts: int,
    backoff_s: float,
    is_retryable: Callable[[Exception], bool],
    adjust_pause: Callable[[Exception, float], float] = lambda _, pause_s: pause_s,
) -> R:
    """Call an operation until it succeeds; log a warning before each repetition.

    Args:
        operation: the operation to call.
        name: what the warnings call the operation, such as "download of URL".
        attempts: maximum number of calls.
        backoff_s: pause after the first failure, s; doubled after each further one.
        is_retryable: returns True for an error after which to call the operation again.
        adjust_pause: returns the pause to make, from the error and the pause by `backoff_s`.

    Raises:
        Exception: the error of the last call, or the first error that is not retryable.
    """
    for attempt in range(1, attempts + 1):
        try:
            return operation()
        except Exception as error:
            if attempt == attempts or not is_retryable(error):
                raise
            log.warning("%s failed (%s), attempt %d of %d", name, redact(first_line(error)), attempt, attempts)
            time.sleep(adjust_pause(error, backoff_s * 2 ** (attempt - 1)))
    raise AssertionError("the last attempt returns or raises")


def with_retries(operation: Callable[Concatenate[str, P], R]) -> Callable[Concatenate[str, P], R]:
    """Retry an idempotent operation on a URL after transient errors.

    The operation also raises InputError, for errors that the user can fix.
    """

    @functools.wraps(operation)
    def retrying(url: str, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return retry(
                lambda: operation(url, *args, **kwargs),
                f"{operation.__name__.strip('_')} of {redact(url)}",
                attempts=ATTEMPTS,
                backoff_s=BACKOFF_S,
                is_retryable=lambda error: isinstance(error, retryable_exceptions()) and is_transient(error),
                adjust_pause=_with_jitter,
            )
        except retryable_exceptions() as error:
            user_error = user_error_for(error, url)
            if user_error is None:
                raise
            raise user_error from error

    return retrying


def _with_jitter(_: Exception, pause_s: float) -> float:
    """Scale a pause by a random factor in 0.5..1.5, because many workers share a store."""
    return pause_s * random.SystemRandom().uniform(0.5, 1.5)  # leaves the seeded generators untouched
