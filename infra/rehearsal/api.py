"""What a user's kubectl is told: commands run with a stand-in for it, which sends its words here, call by call."""

from __future__ import annotations

import base64
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from infra.rehearsal.pods import PodFailedError

POLL_S, CALL_S, PATIENCE_S = 0.2, 60.0, 1200.0


@dataclass(frozen=True)
class Reply:
    """What kubectl prints and how it ends."""

    text: str = ""
    code: int = 0
    network: str = ""  # of the pod into which it forwards a port instead of ending


Answer = Callable[[list[str], str], Reply]  # of kubectl's words and what it reads from standard input


def run(
    command: Sequence[str],
    answer: Answer,
    log: Path,
    *,
    env: Mapping[str, str] = os.environ,
    folder: Path | None = None,
) -> int:
    """Run a command, and what it starts, with the stand-in first on its path; gives its exit code.

    Args:
        answer: what it raises ends the command and comes through.
        log: a file for what the command prints.
        folder: where to run it.

    Raises:
        PodFailedError: for twenty minutes the command neither ended nor called kubectl.
    """
    with tempfile.TemporaryDirectory() as scratch, socket.socket(socket.AF_UNIX) as server, open(log, "w") as out:
        program, place = Path(scratch, "kubectl"), Path(scratch, "socket")  # a folder for us alone, with a short name
        # -P: beside the stand-in lies a module that the standard library has too
        words = shlex.join([sys.executable, "-P", str(Path(__file__).with_name("kubectl.py"))])
        program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        program.chmod(0o755)
        server.bind(str(place))
        server.listen()
        server.settimeout(POLL_S)
        seen = {**env, "PATH": f"{scratch}:{env['PATH']}", "REHEARSAL": str(place)}
        process = subprocess.Popen(
            command, env=seen, cwd=folder, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            idle_s = 0.0
            while process.poll() is None:
                try:
                    client = server.accept()[0]
                except TimeoutError:
                    idle_s += POLL_S
                    if idle_s > PATIENCE_S:
                        raise PodFailedError(f"nothing has happened for {PATIENCE_S:.0f} s ({log})") from None
                    continue
                idle_s = 0.0
                _serve(client, answer)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # all that it started
            process.wait()
    return process.returncode


def _serve(client: socket.socket, answer: Answer) -> None:
    client.settimeout(CALL_S)
    with client, suppress(BrokenPipeError, ConnectionResetError):  # whoever called has ended
        if asked := b"".join(iter(lambda: client.recv(65536), b"")):
            client.sendall(json.dumps(asdict(answer(*json.loads(asked)))).encode())


def secret_reply(secrets: dict[str, dict[str, str]], words: list[str], text: str) -> Reply | None:
    """The reply to a call about secrets, without its namespace; None to another.

    Args:
        secrets: values by secret and key; `create` adds to them.
    """
    match words:
        case ["get", "secrets"]:
            return Reply("".join(f"{name}\n" for name in secrets))
        case ["get", "secret", name, *_] if name not in secrets:
            return Reply(code=1)
        case ["get", "secret", _]:
            return Reply()
        case ["get", "secret", name, "-o" | "--output", path]:
            return Reply(base64.b64encode(secrets[name][data_key(path)].encode()).decode())
        case ["create", "--filename", "-"]:
            found = json.loads(text)
            secrets[found["metadata"]["name"]] = found["stringData"]
            return Reply(f"secret/{found['metadata']['name']} created\n")
    return None


def without_namespace(words: list[str]) -> list[str]:
    """kubectl's words where they name the namespace `scene` first, without it; else as they are."""
    return words[2:] if words[:2] in (["-n", "scene"], ["--namespace", "scene"]) else words


def data_key(path: str) -> str:
    """KEY of jsonpath={.data.KEY}."""
    return path.removeprefix("jsonpath={.data.").removesuffix("}")
