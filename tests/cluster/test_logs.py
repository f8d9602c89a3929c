"""Workers' log lines as key=value."""

from __future__ import annotations

import logging
import shlex

import pytest

from cluster import logs


@pytest.fixture(autouse=True)
def _unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_CONTEXT", {"run": "", "unit": ""})
    monkeypatch.setattr(logging.getLogger(), "handlers", [])


def pairs(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(line))


def test_log_lines_name_the_run_and_the_unit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_HANDLER", handler := logging.StreamHandler())  # on the stream that is captured
    handler.setFormatter(logs.KeyValueFormatter())
    logs.work_on("clips", "0af3.g0.1")
    logs.work_on("clips", "0af3.g0.2")  # the next one; lines must not come twice
    logging.getLogger("cluster.fetch").warning('fetching "%s" failed\nagain', "a b.mp4")
    (line,) = capsys.readouterr().err.splitlines()
    found = pairs(line)
    assert (found["run"], found["unit"], found["level"]) == ("clips", "0af3.g0.2", "WARNING")
    assert (found["logger"], found["message"]) == ("cluster.fetch", 'fetching "a b.mp4" failed\\nagain')


def test_log_lines_keep_a_traceback_on_their_line() -> None:
    try:
        raise OSError("no such bucket")
    except OSError as fault:
        record = logging.LogRecord(
            "a", logging.ERROR, "", 1, "saving failed", (), (OSError, fault, fault.__traceback__)
        )
    line = logs.KeyValueFormatter().format(record)
    assert "\n" not in line
    assert "run=" not in line, "nothing was said to be worked on"
    assert pairs(line)["message"].endswith("OSError: no such bucket")
