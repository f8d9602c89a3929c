"""`jobs.submit`: the printed command, invalid submissions, and a submission to a local Ray head."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.runtime.job_submission import MAX_UPLOAD_MIB, PACKAGES, check_upload_size, next_submission_id
from cluster.runtime.local_head import Head, local_head
from jobs import submit
from vgan.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def submitted(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m jobs.submit` without Ray's environment variables, except `variables`."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": "/nonexistent"} | variables
    command = [sys.executable, "-m", "jobs.submit", *arguments]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def printed_command(capsys: pytest.CaptureFixture[str], job: list[str], **settings: object) -> list[str]:
    submit.main(job, submit.SubmitConfig(dry_run=True, **settings))  # type: ignore[arg-type]
    (line,) = capsys.readouterr().out.splitlines()
    return shlex.split(line)


def test_verbs_are_the_jobs_that_a_cluster_can_run() -> None:
    modules = {path.stem for path in (ROOT / "jobs").glob("*.py")}
    assert set(submit.VERBS) == modules - {"__init__", "__main__", "cli", "demo", "plan", "study", "submit"}


def test_command_is_plain_ray_job_submit(capsys: pytest.CaptureFixture[str]) -> None:
    job = ["train", "config=jobs/configs/paper.yaml", "data=s3://b/clips", "out=$STORE/runs"]
    command = printed_command(capsys, job, address="http://head:8265/", decode_labels="a=b", wait=False)
    assert command[:8] == [
        "RAY_AUTH_MODE=token",
        "ray",
        "job",
        "submit",
        "--address",
        "http://head:8265",
        "--submission-id",
        "paper",
    ]
    env = json.loads(command[command.index("--runtime-env-json") + 1])
    assert env["working_dir"] == str(ROOT)
    assert env["excludes"] == ["/*", "!/.", *(f"!/{package}" for package in PACKAGES)]
    assert env["env_vars"]["SCENE_DECODE_LABELS"] == "a=b"
    assert "SCENE_TRAIN_LABELS" not in env["env_vars"]
    assert command[command.index("--no-wait") :] == ["--no-wait", "--", "python", "-m", "jobs.train", *job[1:]]


@pytest.mark.parametrize(
    ("job", "name"),
    [
        (["prepare", "out=x"], "prepare"),
        (["train", "name=a", "name=gan"], "gan"),
        (["train", "config=jobs/configs/laptop.yaml"], "laptop"),
        (["train", "config=jobs/configs/laptop.yaml", "name=other"], "other"),
    ],
)
def test_submission_has_the_name_of_the_run(job: list[str], name: str) -> None:
    assert submit.run_name(job) == name


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, "gan"),
        ({"other": "RUNNING"}, "gan"),
        ({"gan": "FAILED"}, "gan-2"),
        ({"gan": "SUCCEEDED", "gan-2": "STOPPED"}, "gan-3"),
    ],
)
def test_submission_id_of_a_repeated_run_gets_a_number(status: dict[str, str], expected: str) -> None:
    assert next_submission_id([{"submission_id": k, "status": v} for k, v in status.items()], "gan") == expected


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_running_run_is_not_submitted_again(status: str) -> None:
    earlier = [{"submission_id": "gan", "status": "FAILED"}, {"submission_id": "gan-2", "status": status}]
    with pytest.raises(InputError, match=f"'gan-2' is {status}"):
        next_submission_id(earlier, "gan")


def test_upload_above_the_size_limit_names_its_largest_file(tmp_path: Path) -> None:
    check_upload_size()
    for package in PACKAGES:
        (tmp_path / package).mkdir()
    with open(tmp_path / "jobs/weights.bin", "wb") as file:
        file.truncate(MAX_UPLOAD_MIB * 2**20)
    check_upload_size(tmp_path)
    (tmp_path / "vgan/more.py").write_text("x")
    with pytest.raises(InputError, match=r"weights\.bin"):
        check_upload_size(tmp_path)


@pytest.mark.parametrize(
    ("job", "settings", "message"),
    [
        ([], {}, "name one of"),
        (["trian", "data=x"], {}, "did you mean 'train'"),
        (["command"], {}, "name one of"),
        (["train", "--help"], {}, "python -m jobs.train --help"),
        (["train", "config=/etc/passwd"], {}, "'/etc/passwd' is not uploaded"),
        (["train", "config=jobs/../README.md"], {}, "is not uploaded"),
        (["train", "config=jobs/configs/none.yaml"], {}, "is not uploaded"),
        (["train"], {"address": "head:8265"}, "must be the URL of the jobs API"),
        (["train"], {"dry_run": False, "token_file": "/nonexistent/token"}, "no token at '/nonexistent/token'"),
    ],
)
def test_invalid_submissions_are_refused_before_the_upload(
    job: list[str], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        submit.main(job, submit.SubmitConfig(**{"dry_run": True, **settings}))  # type: ignore[arg-type]


def test_unreachable_jobs_api_is_reported_in_one_line_without_the_token() -> None:
    done = submitted("address=http://127.0.0.1:9", "train", RAY_AUTH_TOKEN="f00d" * 16)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no jobs API answers at address='http://127.0.0.1:9'")
    assert done.stderr.count("\n") == 1
    assert "f00d" not in done.stdout + done.stderr


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with pytest.MonkeyPatch.context() as patch:
        # One `python`, as in a container image.
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        with local_head(tmp_path_factory.mktemp("head"), num_cpus=1) as running:
            yield running


@pytest.mark.ray
def test_submitted_job_runs_and_runs_again_with_a_number(head: Head, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/a.mp4").write_bytes(b"x")
    job = ["acquire", f"folder={tmp_path}/videos", f"out={tmp_path}/sources.parquet"]
    access = [f"address={head.address}", f"token_file={head.token_file}"]
    for _ in range(2):
        done = submitted(*access, *job)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 videos" in done.stdout
    assert (tmp_path / "sources.parquet").exists()
    assert [row["submission_id"] for row in head.jobs()] == ["acquire", "acquire-2"]

    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    done = submitted(access[0], f"token_file={wrong}", *job)
    assert done.returncode == 2
    assert "the token is refused" in done.stderr


@pytest.mark.ray
def test_submitted_job_reads_the_uploaded_files(head: Head, tmp_path: Path) -> None:
    """Fail as the job does, after reading jobs/configs, which only the upload has in the working folder."""
    access = [f"address={head.address}", f"token_file={head.token_file}"]
    done = submitted(*access, "train", "config=jobs/configs/laptop.yaml", f"data={tmp_path}/none", f"out={tmp_path}")
    assert done.returncode not in (0, 2, 130)
    (error,) = {line for line in done.stdout.splitlines() if line.startswith("error: ")}
    assert f"{tmp_path}/none" in error
