"""Server behind a stand-in for kubectl: runs commands with the stand-in on their path and answers each of its calls."""

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

from infra.local_kubernetes.pods import PodFailedError

POLL_S, CALL_TIMEOUT_S, IDLE_TIMEOUT_S = 0.2, 60.0, 1200.0


@dataclass(frozen=True)
class Reply:
    """Output and exit code of one kubectl call."""

    text: str = ""
    code: int = 0
    network: str = ""  # network namespace of the pod to forward a port to; the call then does not end by itself


Handler = Callable[[list[str], str], Reply]  # of kubectl's arguments and the text of its standard input


def run(
    command: Sequence[str],
    handler: Handler,
    log: Path,
    *,
    env: Mapping[str, str] = os.environ,
    folder: Path | None = None,
) -> int:
    """Run a command with the stand-in first on its path, and return the command's exit code.

    Args:
        command: Program and arguments.
        handler: Answers each call of kubectl; an exception in it ends the command and is raised here.
        log: File for the output of the command.
        env: Environment of the command; must contain PATH.
        folder: Working directory of the command.

    Raises:
        PodFailedError: For twenty minutes the command neither ended nor called kubectl.
    """
    with tempfile.TemporaryDirectory() as scratch, socket.socket(socket.AF_UNIX) as server, open(log, "w") as out:
        program, address = Path(scratch, "kubectl"), Path(scratch, "socket")  # private, and short enough for a socket
        # -P: keep this package's folder off sys.path, where its modules could shadow the standard library's
        stand_in = shlex.join([sys.executable, "-P", str(Path(__file__).with_name("kubectl.py"))])
        program.write_text(f'#!/bin/sh\nexec {stand_in} "$@"\n')
        program.chmod(0o755)
        server.bind(str(address))
        server.listen()
        server.settimeout(POLL_S)
        command_env = {**env, "PATH": f"{scratch}:{env['PATH']}", "KUBECTL_SERVER": str(address)}
        process = subprocess.Popen(
            command, env=command_env, cwd=folder, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            idle_s = 0.0
            while process.poll() is None:
                try:
                    client = server.accept()[0]
                except TimeoutError:
                    idle_s += POLL_S
                    if idle_s > IDLE_TIMEOUT_S:
                        raise PodFailedError(f"no call of kubectl for {IDLE_TIMEOUT_S:.0f} s ({log})") from None
                    continue
                idle_s = 0.0
                _serve(client, handler)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the command and its children
            process.wait()
    return process.returncode


def _serve(client: socket.socket, handler: Handler) -> None:
    """Answer one call."""
    client.settimeout(CALL_TIMEOUT_S)
    with client, suppress(BrokenPipeError, ConnectionResetError):  # the caller has ended
        if request := b"".join(iter(lambda: client.recv(65536), b"")):
            client.sendall(json.dumps(asdict(handler(*json.loads(request)))).encode())


def secret_reply(secrets: dict[str, dict[str, str]], args: list[str], text: str) -> Reply | None:
    """Answer a call about secrets; return None for any other call.

    Args:
        secrets: Values by secret and key; `create` adds to them.
        args: kubectl's arguments without the namespace (`without_namespace`).
        text: Standard input of the call.
    """
    match args:
        case ["get", "secrets"]:
            return Reply("".join(f"{name}\n" for name in secrets))
        case ["get", "secret", name, *_] if name not in secrets:
            return Reply(code=1)
        case ["get", "secret", _]:
            return Reply()
        case ["get", "secret", name, "-o" | "--output", path]:
            return Reply(base64.b64encode(secrets[name][data_key(path)].encode()).decode())
        case ["create", "--filename", "-"]:
            secret = json.loads(text)
            secrets[secret["metadata"]["name"]] = secret["stringData"]
            return Reply(f"secret/{secret['metadata']['name']} created\n")
    return None


def without_namespace(args: list[str]) -> list[str]:
    """Remove a leading `-n scene` or `--namespace scene` from kubectl's arguments."""
    return args[2:] if args[:2] in (["-n", "scene"], ["--namespace", "scene"]) else args


def data_key(path: str) -> str:
    """Return KEY of `jsonpath={.data.KEY}`."""
    return path.removeprefix("jsonpath={.data.").removesuffix("}")
