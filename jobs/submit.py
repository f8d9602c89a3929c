"""Submit a job to a cluster: a thin wrapper of `ray job submit`, whose line it prints."""

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

ABOUT = """Submit a job to a Ray cluster and follow its output. Words before the verb are this command's, those after it
the job's. It prints the `ray job submit` line that does the same, and becomes it; Ctrl-C leaves the job running.

  python -m jobs.submit train config=jobs/configs/paper.yaml data=s3://bucket/clips out=s3://bucket/runs
  python -m jobs.submit address=http://head:8265 token_file=~/.ray-token prepare sources=/videos out=s3://bucket/clips
  python -m jobs.submit dry_run=true finetune ucf101=/datasets/ucf101 'checkpoint=$STORE/runs/paper'

A word in single quotes may name a variable of the cluster's nodes, as $STORE does. Only vgan/, cluster/ and jobs/ are
uploaded, so config=FILE must lie below them.
"""
VERBS = ("acquire", "prepare", "dataset", "train", "generate", "predict", "evaluate", "inspect", "finetune")
DEFAULT_ADDRESS, DEFAULT_TOKEN_FILE = "http://127.0.0.1:8265", "~/.ray/auth_token"  # Ray's own


@dataclass(frozen=True, kw_only=True)
class SubmitConfig:
    """How a job is submitted."""

    print_settings: ClassVar[bool] = False  # the printed line holds them
    address: str = option("", f"url of the jobs API; empty: RAY_API_SERVER_ADDRESS, else {DEFAULT_ADDRESS}", "common")
    token_file: str = option(
        "",
        f"file with the cluster's token; empty: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, else {DEFAULT_TOKEN_FILE}",
        "common",
    )
    id: str = option(
        "", "submission id; empty: the run's name (or the verb), numbered after earlier ones that ended", "common"
    )
    wait: bool = option(True, "follow the job's output to its end", "common")
    dry_run: bool = option(False, "print the line only; the cluster is not asked for earlier jobs", "common")
    decode_labels: str = option("", "key=value,... of nodes for video to clips, where the cluster does not say itself")
    train_labels: str = option("", "key=value,... of nodes for training, where the cluster does not say itself")


def main(job: Sequence[str], config: SubmitConfig) -> None:
    """Check what can be checked here, print the line and become it.

    Args:
        job: the verb and its words.
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
        raise InputError(f"address={address!r} must be the jobs API's url, like {DEFAULT_ADDRESS}")
    if config.dry_run:
        identity, access = config.id or name, {"RAY_AUTH_MODE": "token"}
    else:
        access = token_access(config.token_file)
        identity = config.id or next_submission_id(_jobs(address, access), name)
    labels = {DECODE: config.decode_labels, TRAIN: config.train_labels}
    line = submit_command(
        address,
        identity,
        [f"jobs.{job[0]}", *job[1:]],
        python="python",
        env_vars={key: value for key, value in labels.items() if value},
    )
    if not config.wait:
        line.insert(line.index("--"), "--no-wait")
    shown = [f"{key}={value}" for key, value in access.items() if key != "RAY_AUTH_TOKEN"]
    print(shlex.join([*shown, "ray", *line[1:]]), flush=True)
    if not config.dry_run:
        os.execve(RAY, line, client_env() | access)  # noqa: S606 - its exit code and signals are ours from here


def run_name(job: Sequence[str]) -> str:
    """What the job's run is called: `name=`, of its words or its file, else the verb.

    Raises:
        InputError: its file is not among what is uploaded.
    """
    named = [word.removeprefix("name=") for word in job[1:] if word.startswith("name=")]
    stored: object = None
    if len(job) > 1 and job[1].startswith("config="):
        path = job[1].removeprefix("config=")
        inside = Path(path).parts[:1] and Path(path).parts[0] in PACKAGES and ".." not in Path(path).parts
        if not inside or not (ROOT / path).is_file():
            raise InputError(f"config={path!r} is not uploaded: put it below jobs/configs and name it from there")
        content = yaml.safe_load((ROOT / path).read_text())
        stored = content.get("name") if isinstance(content, dict) else None
    return named[-1] if named else str(stored or job[0])


def token_access(token_file: str) -> dict[str, str]:
    """The variables that let Ray's client in, from the setting, else from this environment.

    Raises:
        InputError: there is no token.
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
    except urllib.error.HTTPError as fault:
        why = "the token is refused" if fault.code in (401, 403) else f"HTTP {fault.code}"
        raise InputError(f"the jobs API at address={address!r} does not serve us: {why}") from fault
    except (OSError, ValueError) as fault:
        raise InputError(f"no jobs API answers at address={address!r}: {getattr(fault, 'reason', fault)}") from fault


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """This command's words, and the verb with the job's."""
    own = 0
    while own < len(words) and ("=" in words[own] or words[own] in ("-h", "--help", "help")):
        own += 1
    return list(words[:own]), list(words[own:])


if __name__ == "__main__":
    own, job = _split(sys.argv[1:])
    raise SystemExit(cli.run(partial(main, job), SubmitConfig, ABOUT, own))
