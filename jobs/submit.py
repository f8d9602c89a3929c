"""Job that submits another job to a Ray cluster: a thin wrapper of `ray job submit`, whose command it prints."""

from __future__ import annotations

import difflib
import os
import shlex
import sys
import urllib.error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import yaml

from cluster.runtime.job_submission import (
    PACKAGES,
    RAY,
    ROOT,
    check_upload_size,
    client_env,
    list_jobs,
    next_submission_id,
    submit_command,
)
from cluster.runtime.placement import DECODE, TRAIN
from jobs import cli
from vgan.errors import InputError
from vgan.options import option

ABOUT = """Submit a job to a Ray cluster and follow its output. Options before the verb belong to the submission, those
after it to the job. Prints and runs the equivalent `ray job submit` command; Ctrl-C leaves the job running.

  python -m jobs.submit train config=jobs/configs/paper.yaml data=s3://bucket/clips out=s3://bucket/runs
  python -m jobs.submit address=http://head:8265 token_file=~/.ray-token prepare sources=/videos out=s3://bucket/clips
  python -m jobs.submit dry_run=true finetune ucf101=/datasets/ucf101 'checkpoint=$STORE/runs/paper'

An option in single quotes may use environment variables of the cluster's nodes, such as $STORE. Only vgan/, cluster/
and jobs/ are uploaded, so config=FILE must be inside them.
"""
VERBS = ("acquire", "prepare", "dataset", "train", "generate", "predict", "evaluate", "inspect", "finetune")
DEFAULT_ADDRESS, DEFAULT_TOKEN_FILE = "http://127.0.0.1:8265", "~/.ray/auth_token"  # those of Ray


@dataclass(frozen=True, kw_only=True)
class SubmitConfig:
    """Settings of a submission."""

    print_settings: ClassVar[bool] = False  # the printed command contains them
    address: str = option("", f"URL of the jobs API; empty: RAY_API_SERVER_ADDRESS, else {DEFAULT_ADDRESS}", "common")
    token_file: str = option(
        "",
        f"file with the cluster's token; empty: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, else {DEFAULT_TOKEN_FILE}",
        "common",
    )
    id: str = option(
        "", "submission id; empty: name of the run, else the verb, with a number if it was used before", "common"
    )
    wait: bool = option(True, "print the job's output until it ends; false: return after the submission", "common")
    dry_run: bool = option(False, "only print the command, without contacting the cluster", "common")
    decode_labels: str = option("", "node labels key=value,... for preparation tasks; empty: as the cluster sets them")
    train_labels: str = option("", "node labels key=value,... for training workers; empty: as the cluster sets them")


def main(job: Sequence[str], config: SubmitConfig) -> None:
    """Check the arguments, print the `ray job submit` command and replace this process with it.

    Args:
        job: verb and options of the job.
        config: settings of the submission.

    Raises:
        InputError: an unknown verb, a configuration file that is not uploaded, no token, or an unreachable jobs API.
    """
    if not job or job[0] not in VERBS:
        close = difflib.get_close_matches(job[0] if job else "", VERBS, n=1)
        raise InputError(f"name one of {', '.join(VERBS)}" + (f"; did you mean {close[0]!r}?" if close else ""))
    if {"-h", "--help", "help"} & set(job):
        raise InputError(f"python -m jobs.{job[0]} --help lists its options")
    name = run_name(job)
    check_upload_size()
    address = (config.address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS).rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise InputError(f"address={address!r} must be the URL of the jobs API, like {DEFAULT_ADDRESS}")
    if config.dry_run:
        submission_id, access = config.id or name, {"RAY_AUTH_MODE": "token"}
    else:
        access = token_access(config.token_file)
        submission_id = config.id or next_submission_id(_jobs(address, access), name)
    labels = {DECODE: config.decode_labels, TRAIN: config.train_labels}
    command = submit_command(
        address,
        submission_id,
        [f"jobs.{job[0]}", *job[1:]],
        python="python",
        env_vars={key: value for key, value in labels.items() if value},
    )
    if not config.wait:
        command.insert(command.index("--"), "--no-wait")
    variables = [f"{key}={value}" for key, value in access.items() if key != "RAY_AUTH_TOKEN"]
    print(shlex.join([*variables, "ray", *command[1:]]), flush=True)
    if not config.dry_run:
        os.execve(RAY, command, client_env() | access)  # noqa: S606 - its exit code is that of this job


def run_name(job: Sequence[str]) -> str:
    """Return the name of the job's run: `name=` from its options or its configuration file, else the verb.

    Args:
        job: verb and options of the job.

    Raises:
        InputError: the configuration file is not uploaded with the code.
    """
    names = [argument.removeprefix("name=") for argument in job[1:] if argument.startswith("name=")]
    stored: object = None
    if len(job) > 1 and job[1].startswith("config="):
        path = job[1].removeprefix("config=")
        is_uploaded = Path(path).parts[:1] and Path(path).parts[0] in PACKAGES and ".." not in Path(path).parts
        if not is_uploaded or not (ROOT / path).is_file():
            raise InputError(f"config={path!r} is not uploaded: move it to jobs/configs and give that relative path")
        content = yaml.safe_load((ROOT / path).read_text())
        stored = content.get("name") if isinstance(content, dict) else None
    return names[-1] if names else str(stored or job[0])


def token_access(token_file: str) -> dict[str, str]:
    """Return the environment variables that authenticate Ray's client.

    Args:
        token_file: file with the token; empty: as this environment and Ray's default define it.

    Raises:
        InputError: no token is found.
    """
    if not token_file and os.environ.get("RAY_AUTH_TOKEN"):
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"]}
    path = Path(token_file or os.environ.get("RAY_AUTH_TOKEN_PATH") or DEFAULT_TOKEN_FILE).expanduser().absolute()
    if not path.is_file():
        raise InputError(f"no token at {str(path)!r}: give token_file=, or set RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN")
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


def _jobs(address: str, access: Mapping[str, str]) -> list[dict[str, object]]:
    token = access.get("RAY_AUTH_TOKEN") or Path(access["RAY_AUTH_TOKEN_PATH"]).read_text()
    try:
        return list_jobs(address, token.strip())
    except urllib.error.HTTPError as error:
        detail = "the token is refused" if error.code in (401, 403) else f"HTTP {error.code}"
        raise InputError(f"the jobs API at address={address!r} rejects the request: {detail}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"no jobs API answers at address={address!r}: {getattr(error, 'reason', error)}") from error


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the arguments at the verb: options of the submission; verb and options of the job."""
    verb = 0
    while verb < len(arguments) and ("=" in arguments[verb] or arguments[verb] in ("-h", "--help", "help")):
        verb += 1
    return list(arguments[:verb]), list(arguments[verb:])


if __name__ == "__main__":
    arguments, job = _split(sys.argv[1:])
    raise SystemExit(cli.run(partial(main, job), SubmitConfig, ABOUT, arguments))
