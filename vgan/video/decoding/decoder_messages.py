"""Messages between `isolated_decoder` and its child: a header (type, time, two counts) and a body.

Types: "H" ready; "B" name of the backend; "F" frame: time, height, width, pixels; "S" time of a frame that is skipped;
"R" number of the run of the following frames; "T" treatment, JSON; "D" damage, JSON of its start and detail; "P" probe,
JSON; "E" error, a JSON triple; "." end.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from typing import Any

from vgan.errors import VideoError
from vgan.records import Reject
from vgan.video.decoding.decode import Treatment, VideoMetadata

HEADER = struct.Struct("<cdII")  # type, pts_s, then height and width, or bytes of JSON and 0
MAX_FRAME_BYTES = 2**28  # an 8K picture has 100 MB; a larger size is invalid
MAX_TEXT_BYTES = 2**16
TREATMENT_TYPES = {"deinterlaced": bool, "cadence": str, "notes": str}


def protocol_error(message: str) -> VideoError:
    """Build the error of a child that sent an invalid message: its memory may be corrupted, so it must be stopped."""
    return VideoError("decode", "crashed", f"the decoding child sent {message}")


def parse_text(type_: bytes, text: bytearray) -> Any:
    """Parse and validate the JSON of a message.

    Returns:
        A name (B), a Treatment (T), a Reject (D), three strings (E) or a table (P).
    """
    try:
        value = json.loads(text)
    except ValueError:
        raise protocol_error("text that is not JSON") from None
    if type_ == b"P":
        valid = isinstance(value, dict)
    elif type_ == b"B":
        valid = isinstance(value, str)
    elif type_ == b"T":
        valid = isinstance(value, dict) and {k: type(v) for k, v in value.items()} == TREATMENT_TYPES
        value = Treatment(**{k: _valid_text(v) for k, v in value.items()}) if valid else value
    elif type_ == b"D":
        valid = isinstance(value, list) and list(map(type, value)) == [float, str] and math.isfinite(value[0])
        value = (
            Reject(start_s=value[0], stage="decode", reason="damaged", detail=_valid_text(value[1])) if valid else value
        )
    else:
        valid = isinstance(value, list) and len(value) == 3 and all(isinstance(item, str) for item in value)
        valid = valid and value[0] == "decode" and re.fullmatch(r"[a-z0-9_]{1,40}", value[1]) is not None
        value = [*value[:2], _valid_text(value[2])] if valid else value
    if not valid:
        raise protocol_error("text of the wrong form")
    return value


def _valid_text(value: Any) -> Any:
    """Replace the lone surrogates of a string, which no file can hold; other values are returned unchanged."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def parse_probe(table: dict[str, Any]) -> VideoMetadata:
    """Convert the child's table into a Probe."""
    try:
        return VideoMetadata(**table)
    except TypeError:
        raise protocol_error("a probe of the wrong form") from None


def write_message(
    out: int, type_: bytes, time_s: float = 0.0, first: int = 0, second: int = 0, body: bytes | memoryview = b""
) -> None:
    """Send one message, with a single system call if it fits into the pipe."""
    header = HEADER.pack(type_, time_s, first, second)
    view = memoryview(body).cast("B")
    num_written = os.writev(out, [header, view])
    if num_written < len(header):  # not observed: writes of up to 4 KiB to a pipe are atomic
        os.write(out, header[num_written:])
        num_written = len(header)
    view = view[num_written - len(header) :]
    while view:
        view = view[os.write(out, view) :]


def write_text(out: int, type_: bytes, value: object) -> None:
    """Send a message with a JSON body."""
    body = json.dumps(value).encode()
    write_message(out, type_, 0.0, len(body), 0, body)
