"""Requests made in a pod's network, as anybody there could make them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from infra.rehearsal.pods import Pod, PodFailedError

REQUEST = """
import base64, json, os, sys, urllib.error, urllib.request
url, token, user, password, host = json.loads(os.environ["REQUEST"])
headers = {}
if token:
    headers["Authorization"] = f"Bearer {token}"
if user:
    headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
if host:
    headers["Host"] = host
try:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
        print(json.dumps([answer.status, answer.read().decode(errors="replace")]))
except urllib.error.HTTPError as fault:
    print(json.dumps([fault.code, fault.read().decode(errors="replace")]))
except OSError as fault:
    print(json.dumps([0, str(fault)]))
"""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; status 0 is a connection that was not made, and says why."""

    status: int
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


def http(pod: Pod, url: str, *, token: str = "", user: str = "", password: str = "", host: str = "") -> Answer:
    """Ask `url` from inside the pod. Credentials go by the environment, which no other user sees."""
    env = {"PATH": pod.environment["PATH"], "REQUEST": json.dumps([url, token, user, password, host])}
    code, text = pod.run(["python", "-c", REQUEST], env=env)
    if code:
        raise PodFailedError(f"no request could be made in {pod.name}: {text[-500:]}")
    return Answer(*json.loads(text))


def page(pod: Pod, url: str) -> str:
    """What `url` answers inside the pod to the program that KubeRay's probes use; "" if it does not."""
    code, text = pod.run(["wget", "--tries", "1", "-T", "10", "-q", "-O-", url])
    return text if code == 0 else ""
