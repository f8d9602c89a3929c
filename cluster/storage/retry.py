"""Retries of storage operations."""

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


def with_retries(operation: Callable[Concatenate[str, P], R]) -> Callable[Concatenate[str, P], R]:
    """Retry an idempotent operation on a URL after transient errors.

    The operation also raises InputError, for errors that the user can fix.
    """

    @functools.wraps(operation)
    def retrying(url: str, *args: P.args, **kwargs: P.kwargs) -> R:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return operation(url, *args, **kwargs)
            except retryable_exceptions() as error:
                if attempt == ATTEMPTS or not is_transient(error):
                    user_error = user_error_for(error, url)
                    if user_error is None:
                        raise
                    raise user_error from error
                details = (operation.__name__.strip("_"), redact(url), redact(first_line(error)), attempt, ATTEMPTS)
                log.warning("%s of %s failed (%s), attempt %d of %d", *details)
                # Jitter: many workers share a store. SystemRandom leaves the seeded generators untouched.
                jitter = random.SystemRandom().uniform(0.5, 1.5)
                time.sleep(jitter * BACKOFF_S * 2 ** (attempt - 1))
        raise AssertionError("the last attempt returns or raises")

    return retrying
