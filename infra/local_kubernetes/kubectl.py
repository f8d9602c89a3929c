"""Stand-in for kubectl: sends its arguments to the server of `kubectl_server`, and forwards ports into pods."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
import threading

NEW_NETWORK = 0x40000000  # CLONE_NEWNET


def main(args: list[str]) -> int:
    """Send the arguments, with standard input if one of them is "-"; print the reply and return its exit code."""
    text = sys.stdin.read() if "-" in args else ""  # before the call: the input may come from another kubectl
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.environ["KUBECTL_SERVER"])
        client.sendall(json.dumps([args, text]).encode())
        client.shutdown(socket.SHUT_WR)
        response = b"".join(iter(lambda: client.recv(65536), b""))
    if not response:
        return 1  # the server has ended, and reports the reason itself
    reply = json.loads(response)
    print(reply["text"], end="", flush=True)
    if reply["network"]:
        forward(reply["network"], int(args[-1]))
    return int(reply["code"])


def forward(network: str, port: int) -> None:
    """Forward localhost:port of this network to the same port of another network namespace, until killed."""
    server = socket.create_server(("127.0.0.1", port))
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{network}") as file:  # sockets created after this are in the pod's network
        if libc.setns(file.fileno(), NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "cannot enter the pod's network")
    while True:
        local, _ = server.accept()
        remote = socket.create_connection(("127.0.0.1", port))
        for source, target in ((local, remote), (remote, local)):
            threading.Thread(target=relay, args=(source, target), daemon=True).start()


def relay(source: socket.socket, target: socket.socket) -> None:
    """Copy data from one socket to the other until the source ends."""
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()
        target.close()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
