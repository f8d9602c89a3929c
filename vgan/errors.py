"""The two expected errors, reported to the user; any other exception is a bug and ends in a traceback."""

from __future__ import annotations


class VideoError(Exception):
    """A video, or a part of one, that cannot be turned into clips. Recorded as a reject; never ends the program.

    Args:
        stage: step that rejected it: fetch, decode, shots, screen, stabilize or gates.
        reason: machine-readable code, snake_case, e.g. "too_short".
        detail: human-readable value and bound.
    """

    def __init__(self, stage: str, reason: str, detail: str = "") -> None:
        super().__init__(stage, reason, detail)  # all three arguments, so that pickling works
        self.stage = stage
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason} ({self.detail})"


class InputError(Exception):
    """Invalid user input. Printed as one line with the value and the fix; exit code 2."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none; at most 200 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
