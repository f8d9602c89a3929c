"""Log format of workers: key=value pairs."""

from __future__ import annotations

import logging
import shlex

import pytest

from cluster.observability import log_format


@pytest.fixture(autouse=True)
def _no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.observability.log_format._CONTEXT", {"run": "", "unit": ""})
    monkeypatch.setattr(logging.getLogger(), "handlers", [])


def pairs(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(line))


def test_log_lines_name_the_run_and_the_unit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "cluster.observability.log_format._HANDLER", handler := logging.StreamHandler()
    )  # writes to the captured stream
    handler.setFormatter(log_format.KeyValueFormatter())
    log_format.set_log_context("clips", "0af3.g0.1")
    log_format.set_log_context("clips", "0af3.g0.2")  # the next unit; its lines must not be written twice
    logging.getLogger("cluster.sources.download").warning('fetching "%s" failed\nagain', "a b.mp4")
    (line,) = capsys.readouterr().err.splitlines()
    fields = pairs(line)
    assert (fields["run"], fields["unit"], fields["level"]) == ("clips", "0af3.g0.2", "WARNING")
    assert (fields["logger"], fields["message"]) == ("cluster.sources.download", 'fetching "a b.mp4" failed\\nagain')


def test_log_lines_keep_a_traceback_on_their_line() -> None:
    try:
        raise OSError("no such bucket")
    except OSError as error:
        record = logging.LogRecord(
            "a", logging.ERROR, "", 1, "saving failed", (), (OSError, error, error.__traceback__)
        )
    line = log_format.KeyValueFormatter().format(record)
    assert "\n" not in line
    assert "run=" not in line, "no context was set"
    assert pairs(line)["message"].endswith("OSError: no such bucket")
