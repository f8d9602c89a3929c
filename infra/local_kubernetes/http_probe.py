"""HTTP requests made inside a pod's network, as any client there could make them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from infra.local_kubernetes.pods import Pod, PodFailedError

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
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as response:
        print(json.dumps([response.status, response.read().decode(errors="replace")]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, error.read().decode(errors="replace")]))
except OSError as error:
    print(json.dumps([0, str(error)]))
"""


@dataclass(frozen=True)
class Response:
    """HTTP response; status 0 is a failed connection, with the error message as text."""

    status: int
    text: str

    def json(self) -> Any:
        """Parse the text as JSON."""
        return json.loads(self.text)


def http(pod: Pod, url: str, *, token: str = "", user: str = "", password: str = "", host: str = "") -> Response:
    """Request `url` from inside the pod; credentials are passed by the environment, which other users cannot read.

    Args:
        pod: Pod in whose network and with whose Python the request is made.
        url: HTTP URL.
        token: Bearer token; empty: none.
        user: User of basic authentication; empty: none.
        password: Password of `user`.
        host: Value of the Host header; empty: the host of the url.
    """
    env = {"PATH": pod.environment["PATH"], "REQUEST": json.dumps([url, token, user, password, host])}
    code, text = pod.run(["python", "-c", REQUEST], env=env)
    if code:
        raise PodFailedError(f"no request could be made in {pod.name}: {text[-500:]}")
    return Response(*json.loads(text))


def page(pod: Pod, url: str) -> str:
    """Fetch `url` inside the pod with wget, which KubeRay's probes use; return "" if it does not answer."""
    code, text = pod.run(["wget", "--tries", "1", "-T", "10", "-q", "-O-", url])
    return text if code == 0 else ""
