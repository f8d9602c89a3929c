"""Log lines of workers, as key=value: they say of which run they are, and of which unit of work or rank."""

from __future__ import annotations

import json
import logging

_ABOUT = {"run": "", "unit": ""}  # of this process, which does one thing at a time; its threads share it


class KeyValueFormatter(logging.Formatter):
    """One line a record, whatever the message holds: time=... level=... logger=... run=... unit=... message="..."."""

    default_msec_format = "%s.%03d"

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)  # with its traceback, if it has one
        pairs = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"), "level": record.levelname, "logger": record.name}
        pairs |= {key: value for key, value in _ABOUT.items() if value}
        return " ".join(f"{key}={value}" for key, value in pairs.items()) + f" message={json.dumps(message)}"


_HANDLER = logging.StreamHandler()
_HANDLER.setFormatter(KeyValueFormatter())


def work_on(run: str, unit: str) -> None:
    """Have this process's log lines, on standard error, name this work from now on."""
    _ABOUT.update(run=run, unit=unit)
    logging.getLogger().addHandler(_HANDLER)  # once: a second time does nothing
