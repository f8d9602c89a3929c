"""kubectl on the user's machine of a rehearsal: a secret, a setting, a port of this machine that leads into a pod."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
import threading
from pathlib import Path

NEW_NETWORK = 0x40000000  # CLONE_NEWNET


def main(words: list[str]) -> None:
    """`-n scene` and one of `get secret NAME -o jsonpath={.data.KEY}`, the same of settings, and `port-forward`."""
    there = json.loads(Path(os.environ["REHEARSAL"]).read_text())
    match words:
        case ["-n", "scene", "get", "secret", name, "-o", path]:
            key = path.removeprefix("jsonpath={.data.").removesuffix("}")
            print((Path(there["secrets"]) / f"{name}.{key}").read_text(), end="")
        case ["-n", "scene", "get", "configmap", "settings", "-o", path]:
            print(there["settings"][path.removeprefix("jsonpath={.data.").removesuffix("}")], end="")
        case ["-n", "scene", "port-forward", service, port]:
            forward(there["services"][service.removeprefix("service/")], int(port))
        case _:
            raise SystemExit(f"not rehearsed: kubectl {' '.join(words)}")


def forward(namespace: str, port: int) -> None:
    """Serve localhost:port of this network with the same port of another, until ended."""
    server = socket.create_server(("127.0.0.1", port))
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as file:  # from here on new sockets are the pod's
        if libc.setns(file.fileno(), NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "cannot enter the pod's network")
    while True:
        near, _ = server.accept()
        far = socket.create_connection(("127.0.0.1", port))
        for one, other in ((near, far), (far, near)):
            threading.Thread(target=relay, args=(one, other), daemon=True).start()


def relay(one: socket.socket, other: socket.socket) -> None:
    """Pass on what comes until it ends."""
    try:
        while data := one.recv(65536):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)
    except OSError:
        one.close()
        other.close()


if __name__ == "__main__":
    main(sys.argv[1:])
