"""The guide's own commands (README.md of infra/k8s, steps 3, 4, 5 and 7), word for word, as a user's machine runs them.

kubectl is a stand-in for what they ask of it: secrets, settings, and ports, which as on Kubernetes lead into the pod.
Left out are the lines about the pod `fill`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from infra.rehearsal.manifests import K8S, ROOT
from infra.rehearsal.network import Network
from infra.rehearsal.pods import Failed, Kubelet

LOGIN = """
import base64, sys, urllib.request
login = base64.b64encode(f"admin:{sys.stdin.read().strip().splitlines()[-1]}".encode()).decode()
asked = urllib.request.Request("http://localhost:5000/api/2.0/mlflow/experiments/search?max_results=1")
asked.add_header("Authorization", f"Basic {login}")
print("logged in", urllib.request.urlopen(asked, timeout=60).status)
"""


def block(step: int) -> str:
    """The shell commands of a step of the guide."""
    page = (K8S / "README.md").read_text()
    text = re.split(r"^\*\*\d+\. ", page, flags=re.MULTILINE)[step]
    (found,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return "".join(line for line in found.splitlines(keepends=True) if "fill" not in line)


def follow(cluster: Kubelet, net: Network, out: Path, secrets: Path) -> None:
    """Run the steps in a folder that holds a folder `videos`; what they print goes into its file `log`.

    Args:
        out: the folder, which becomes the user's home.
        secrets: where the secrets are, by name and key.

    Raises:
        Failed: a command failed, or MLflow does not take the password that the guide shows.
    """
    (out / "bin").mkdir()
    kubectl = out / "bin/kubectl"
    stand_in = shlex.join([sys.executable, str(Path(__file__).with_name("forwarding.py"))])
    kubectl.write_text(f'#!/bin/sh\nexec {stand_in} "$@"\n')
    kubectl.chmod(0o755)
    namespaces = {address.ip: address.namespace for address in net.there}
    lines = [line.split() for line in (cluster.folder / "hosts").read_text().splitlines()]
    services = {name: namespaces[ip] for ip, *names in lines if ip in namespaces for name in names}
    settings = cluster.namespace.named("ConfigMap", "settings")["data"]
    there = {"services": services, "settings": settings, "secrets": str(secrets)}
    (out / "cluster.json").write_text(json.dumps(there))
    forwarding, shown = (line.partition(" #")[0] for line in block(7).splitlines())
    script = [
        "set -euo pipefail; trap 'kill $(jobs -p)' EXIT",
        *(f"echo '--- step {step}'\n{block(step)}\nsleep 2" for step in (3, 4, 5)),
        f"echo '--- step 7'\n{forwarding}\nsleep 2\n{shown} | python -c {shlex.quote(LOGIN)}",  # shown to nobody here
    ]
    env = {
        "PATH": f"{out / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(out),
        "PYTHONPATH": str(ROOT),
        "LANG": "C.UTF-8",
        "REHEARSAL": str(out / "cluster.json"),
    }
    with net.address("laptop", {}) as laptop:
        inside = ["nsenter", f"--net=/run/netns/{laptop.namespace}", "bash", "-c", "\n".join(script)]
        with open(out / "log", "w") as log:
            process = subprocess.Popen(
                inside, env=env, cwd=out, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                process.wait(1200)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # all that it started, where this was interrupted
    text = (out / "log").read_text(errors="replace")
    if process.returncode or "logged in 200" not in text:
        raise Failed(f"a command of the guide failed: {text.strip().splitlines()[-1:]} ({out / 'log'})")
    if (out / ".ray-token").stat().st_mode & 0o077:
        raise Failed("the guide leaves the token where others may read it")
