"""Local Ray head with token authentication, and jobs submitted to it."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from cluster.runtime.local_head import Head, local_head
from vgan.errors import InputError


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Head:
    with local_head(tmp_path_factory.mktemp("head"), num_cpus=2) as running:
        yield running
    assert not running.token_file.exists()
    with socket.socket() as probe:  # no process listens any more
        assert probe.connect_ex(("127.0.0.1", int(running.address.rpartition(":")[2]))) != 0


@pytest.mark.ray
def test_token_file_is_readable_by_its_owner_only(head: Head) -> None:
    assert stat.S_IMODE(head.token_file.stat().st_mode) == 0o600


@pytest.mark.ray
def test_head_refuses_a_submission_without_the_token(head: Head) -> None:
    assert head.refuses_without_token()


@pytest.mark.ray
def test_submitted_jobs_succeed_or_fail_with_their_message(head: Head, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a b.mp4").write_bytes(b"x")
    lines: list[str] = []
    words = ["jobs.acquire", f"folder={tmp_path / 'videos'}", f"out={tmp_path / 'sources.parquet'}"]
    assert head.submit("good", words, tmp_path / "good.log", lines.append)
    assert (tmp_path / "sources.parquet").exists()
    assert any(line.startswith("1 videos") for line in lines)

    lines.clear()
    assert not head.submit("bad", ["jobs.acquire", "folder=/none", "out=x"], tmp_path / "bad.log", lines.append)
    assert any(line.startswith("error: ") for line in lines)
    lines.clear()
    words = ["jobs.acquire", f"folder={tmp_path / 'videos'}", "out=relative.parquet"]
    assert not head.submit("relative", words, tmp_path / "relative.log", lines.append)
    assert any("absolute path" in line for line in lines)
    status = {job["submission_id"]: job["status"] for job in head.jobs()}
    assert status == {"good": "SUCCEEDED", "bad": "FAILED", "relative": "FAILED"}


def test_head_on_a_taken_port_is_bad_input_and_writes_nothing(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(InputError, match=f"dashboard_port={port} is taken"),
            local_head(tmp_path / "head", num_cpus=1, dashboard_port=port),
        ):
            pass
    assert not (tmp_path / "head").exists()


@pytest.mark.parametrize("port", [-1, 70000])
def test_head_on_an_invalid_port_is_bad_input(tmp_path: Path, port: int) -> None:
    with pytest.raises(InputError, match="is no port"), local_head(tmp_path / "head", num_cpus=1, dashboard_port=port):
        pass
