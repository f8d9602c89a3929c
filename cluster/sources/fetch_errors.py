"""Classification of download errors: final rejects, rejects to retry later, and errors that end the job."""

from __future__ import annotations

import email.utils
import errno
import tempfile
import time

import aiohttp
from fsspec.exceptions import FSTimeoutError

from cluster.storage.errors import is_credentials_error, is_transient, user_error_for
from cluster.storage.urls import redact
from vgan.errors import InputError, VideoError

UNREACHABLE = "unreachable"  # reject reason of network faults, which a later run may not have
HTTP_FINAL = frozenset({403, 404, 410, 451})  # forbidden, missing, gone, unavailable for legal reasons
LOCAL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})  # of the folder for temporary files
CERTIFICATE_ERRORS = (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError)


def is_worth_retrying(error: Exception) -> bool:
    """Return True for a download error that another attempt soon after may not have."""
    if isinstance(error, aiohttp.ClientResponseError) and error.status == 403:
        return _header(error, "Content-Length") == "0"  # S3 under load
    return is_transient(error) and not isinstance(error, CERTIFICATE_ERRORS)


def retry_after_s(error: Exception) -> float:
    """Return the pause in seconds that a response requests by its header Retry-After; 0 if it requests none."""
    text = _header(error, "Retry-After").strip()
    if text.isdecimal() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0


def _header(error: Exception, name: str) -> str:
    """Return a header of the response that an error describes; "" if there is none."""
    headers = error.headers if isinstance(error, aiohttp.ClientResponseError) else None
    return headers.get(name, "") if headers else ""


def final_error(error: Exception, uri: str) -> VideoError | InputError:
    """Translate the last error of a download to the error that the video or the job ends with.

    Args:
        error: what fsspec raised, one of `storage.errors.retryable_exceptions`.
        uri: the video's url.

    Returns:
        InputError: no disk space for the file, or an object store that refuses the job's credentials or settings. Every
            other video would fail, too.
        VideoError: reason missing, invalid_url or http_403 and similar, which are final; else UNREACHABLE.
    """
    if isinstance(error, OSError) and error.errno in LOCAL_ERRNOS and error.__cause__ is None:
        return user_error_for(error, tempfile.gettempdir()) or InputError(_one_line(str(error)))
    if isinstance(error, FileNotFoundError):
        return VideoError("fetch", "missing", _one_line(str(error)))
    if not uri.lower().startswith(("http://", "https://")):
        is_users = is_credentials_error(error) or "Invalid endpoint" in str(error)
        user_error = user_error_for(error, uri) if is_users else None
        return user_error or VideoError("fetch", UNREACHABLE, _detail(error))
    if isinstance(error, aiohttp.ClientResponseError) and error.status in HTTP_FINAL:
        return VideoError("fetch", f"http_{error.status}", _one_line(error.message))
    if isinstance(error, ValueError) and not isinstance(error, aiohttp.RedirectClientError):
        return VideoError("fetch", "invalid_url", _one_line(str(error)))
    return VideoError("fetch", UNREACHABLE, _detail(error))


def _detail(error: Exception) -> str:
    """Describe a network fault in one line without secrets."""
    if isinstance(error, FSTimeoutError) and error.__cause__:  # has no message of its own
        return _one_line(str(error.__cause__) or "time-out")
    if isinstance(error, aiohttp.TooManyRedirects):
        return "too many redirects"
    if isinstance(error, aiohttp.ClientResponseError):
        return _one_line(f"status {error.status} {error.message}")
    if isinstance(error, aiohttp.RedirectClientError):
        return _one_line(f"redirect to {error}")
    if isinstance(error, aiohttp.ClientPayloadError):
        return _one_line(f"short body: {error}")
    return _one_line(str(error) or type(error).__name__)


def _one_line(text: str) -> str:
    """Convert a text that a server may have written to one line of at most 200 printable characters, redacted."""
    printable = "".join(character if character.isprintable() else " " for character in redact(text))
    return " ".join(printable.split())[:200]
