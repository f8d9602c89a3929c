"""Log format of workers: key=value pairs with the run and the work unit or rank."""

from __future__ import annotations

import json
import logging

_CONTEXT = {"run": "", "unit": ""}  # of this process and all its threads: it works on one unit at a time


class KeyValueFormatter(logging.Formatter):
    """One line per record, with the message as JSON: time=... level=... logger=... run=... unit=... message="..."."""

    default_msec_format = "%s.%03d"

    def format(self, record: logging.LogRecord) -> str:
        """Format a record and its traceback, if any, as one line."""
        message = super().format(record)
        pairs = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"), "level": record.levelname, "logger": record.name}
        pairs |= {key: value for key, value in _CONTEXT.items() if value}
        return " ".join(f"{key}={value}" for key, value in pairs.items()) + f" message={json.dumps(message)}"


_HANDLER = logging.StreamHandler()
_HANDLER.setFormatter(KeyValueFormatter())


def set_log_context(run: str, unit: str) -> None:
    """Set the run and the work unit or rank in this process's log lines, and write them to standard error."""
    _CONTEXT.update(run=run, unit=unit)
    logging.getLogger().addHandler(_HANDLER)  # adding the same handler again has no effect
