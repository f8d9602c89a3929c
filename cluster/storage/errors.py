"""Exceptions of object stores: transient ones, and messages for those that the user can mend."""

from __future__ import annotations

import errno
import sys

import aiohttp
import botocore.exceptions as boto
from botocore.parsers import ResponseParserError

from cluster.storage.urls import is_local_url, redact
from vgan.errors import InputError, first_line

STORE_EXCEPTIONS = (
    OSError,
    ValueError,
    boto.BotoCoreError,
    ResponseParserError,
    aiohttp.ClientError,
)  # raised by stores
CONNECTION_EXCEPTIONS = (
    ConnectionError,
    TimeoutError,
    boto.ConnectionError,
    boto.HTTPClientError,
    aiohttp.ClientConnectionError,
    aiohttp.ClientPayloadError,
)
TRANSIENT_CODES = frozenset(  # S3 error codes of transient failures, whatever their HTTP status
    {"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable"}
    | {"OperationAborted", "ConditionalRequestConflict"}  # a concurrent writer of the same name
    | {"NoSuchUpload"}  # a multipart upload was completed, and its response lost
)
TRANSIENT_ERRNOS = frozenset({errno.EBUSY, errno.ESTALE, errno.EAGAIN})  # network mounts
STORE_FULL_CODES = frozenset(
    {"InsufficientStorage", "XMinioStorageFull", "QuotaExceeded", "ServiceQuotaExceededException"}
)
CREDENTIAL_CODES = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"})


def retryable_exceptions() -> tuple[type[Exception], ...]:
    """Return the exception types that stores raise, including those of gcsfs once it is imported."""
    google = sys.modules.get("gcsfs.retry")
    if not hasattr(google, "validate_response"):  # not imported, or still being imported by another thread
        return STORE_EXCEPTIONS
    return (*STORE_EXCEPTIONS, google.HttpError, google.google.auth.exceptions.GoogleAuthError)  # type: ignore[union-attr]


def is_transient(fault: BaseException) -> bool:
    """Return True for a transient error of a store: broken connection, time-out, server error."""
    status, code = _response_status(fault)
    if status is not None:
        return (
            (_is_empty_refusal(fault) or code in TRANSIENT_CODES)
            or status in (408, 429)
            or (status >= 500 and status not in (501, 507))
        )
    return (
        isinstance(fault, (*CONNECTION_EXCEPTIONS, ResponseParserError))
        or getattr(fault, "errno", 0) in TRANSIENT_ERRNOS
    )


def _is_empty_refusal(fault: BaseException) -> bool:
    """Return True for S3's answer 403 without an error document, which it sends under load for permitted requests.

    Answers to HEAD requests never have a document, and therefore do not count.
    """
    for cause in (fault, fault.__cause__):
        if isinstance(cause, boto.ClientError) and not cause.operation_name.startswith("Head"):
            return cause.response.get("Error", {}).get("Code") == "403"  # botocore's substitute for a missing code
    return False


def is_credentials_error(fault: BaseException) -> bool:
    """Return True if an object store refuses the job's credentials, or if there are none: every request would fail."""
    return _is_aws_credentials_error(fault) or _response_status(fault)[0] == 401


def _is_aws_credentials_error(fault: BaseException) -> bool:
    """Return True for missing, unknown, expired or wrong credentials of S3, not for a lack of permission."""
    missing = boto.NoCredentialsError | boto.PartialCredentialsError | boto.ProfileNotFound
    return _response_status(fault)[1] in CREDENTIAL_CODES or isinstance(fault, missing)


def user_error_for(fault: BaseException, url: str) -> InputError | None:
    """Translate an error of a store into one the user can fix, in one line without secrets.

    Args:
        fault: The exception that the store raised.
        url: The URL of the failed operation.

    Returns:
        The error to raise; None if the user cannot fix the cause.
    """
    name, (status, code) = repr(redact(url)), _response_status(fault)
    number = fault.errno if isinstance(fault, OSError) and status is None else None  # s3fs invents errno values
    if number in (errno.ENOSPC, errno.EDQUOT) or code in STORE_FULL_CODES or status == 507:
        return InputError(f"no space left to write {name}: free some space and run the same command again")
    if number == errno.EROFS:
        return InputError(
            f"cannot write {name}, its file system is read-only: choose another folder or mount it writable"
        )
    if _is_aws_credentials_error(fault):
        return InputError(
            f"the store refuses the credentials for {name} ({code or type(fault).__name__}): "
            "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the profile or the role"
        )
    if isinstance(fault, PermissionError) or status in (401, 403):
        reason = code or status or getattr(fault, "strerror", None) or "refused"
        fix = "choose another folder" if is_local_url(url) else "correct the credentials"
        return InputError(f"no permission for {name} ({reason}): {fix}, or request access to it")
    if code == "NoSuchBucket":
        return InputError(f"no bucket for {name}: create it, or correct the name or AWS_ENDPOINT_URL")
    if isinstance(fault, boto.FlexibleChecksumError):
        return InputError(
            f"wrong checksum in a response of the store of {name}: if it sends the checksum of the full file with a "
            "range of it, set AWS_RESPONSE_CHECKSUM_VALIDATION=when_required"
        )
    if isinstance(fault, CONNECTION_EXCEPTIONS):
        reason = redact(first_line(fault))
        return InputError(
            f"cannot reach the store of {name} ({reason}): check AWS_ENDPOINT_URL or the host, and the network"
        )
    if isinstance(fault, ValueError) and "Invalid endpoint" in str(fault):
        return InputError(f"cannot use {name}: AWS_ENDPOINT_URL must have the form http://host:port")
    if status is not None and status >= 500:  # rclone answers 500 when its disk is full
        return InputError(
            f"the store of {name} keeps answering {status} ({code or 'no reason given'}): "
            "check whether its disk is full or it is overloaded, and run the same command again"
        )
    return None


def _response_status(error: BaseException) -> tuple[int | None, str]:
    """Return HTTP status and S3 error code of a store's response; (None, "") if there was no response."""
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status, ""
    if "gcsfs.retry" in sys.modules and (status := _google_status(error)):
        return status, ""
    for cause in (error, error.__cause__):  # s3fs turns S3's responses into OSError
        if isinstance(cause, boto.ClientError):
            code = str(cause.response.get("Error", {}).get("Code", ""))
            return cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode"), code
    return None, ""


def _google_status(error: BaseException) -> int | None:
    """Return the HTTP status of a gcsfs error; 401 if no credentials were found, None if there is no status."""
    google = sys.modules["gcsfs.retry"]
    if isinstance(error, google.HttpError):
        return int(error.code) if error.code else None
    if isinstance(error, google.google.auth.exceptions.GoogleAuthError):
        return 401
    return 403 if isinstance(error, OSError) and str(error).startswith("Forbidden: ") else None
