"""The two errors that are part of the product; everything else is a bug and crashes loudly."""


class BadVideo(Exception):
    """A video, or a stretch of one, that cannot give clips. Becomes a reject row, never a crash.

    Args:
        stage: the step that refused it: fetch, decode, shots, stabilize or gates.
        reason: machine-readable code, snake_case, e.g. "too_short".
        detail: the value and the bound, for a person.
    """

    def __init__(self, stage: str, reason: str, detail: str = "") -> None:
        super().__init__(stage, reason, detail)  # all three, so that it survives pickling
        self.stage = stage
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason} ({self.detail})"


class BadInput(Exception):
    """Something the user gave cannot work. Printed as one line that names the value and the fix; exit code 2."""
