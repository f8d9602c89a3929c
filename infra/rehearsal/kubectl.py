"""kubectl on the user's machine of a rehearsal: its words go to the rehearsal, a port leads from here into a pod."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
import threading

NEW_NETWORK = 0x40000000  # CLONE_NEWNET


def main(words: list[str]) -> int:
    """Send the words, and standard input where one of them is "-"; print what comes back, and do what it says."""
    text = sys.stdin.read() if "-" in words else ""  # before calling: it may come from another kubectl
    with socket.socket(socket.AF_UNIX) as asked:
        asked.connect(os.environ["REHEARSAL"])
        asked.sendall(json.dumps([words, text]).encode())
        asked.shutdown(socket.SHUT_WR)
        answered = b"".join(iter(lambda: asked.recv(65536), b""))
    if not answered:
        return 1  # the rehearsal is over, and says why
    reply = json.loads(answered)
    print(reply["text"], end="", flush=True)
    if reply["network"]:
        forward(reply["network"], int(words[-1]))
    return int(reply["code"])


def forward(network: str, port: int) -> None:
    """Serve localhost:port of this network with the same port of another, until ended."""
    server = socket.create_server(("127.0.0.1", port))
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{network}") as file:  # from here on new sockets are the pod's
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
    raise SystemExit(main(sys.argv[1:]))
