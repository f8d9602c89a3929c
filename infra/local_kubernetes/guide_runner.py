"""Runner of the guide's commands (README.md of infra/k8s, steps 2 to 7), unchanged, on the user's side."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

from infra.local_kubernetes.control_plane import ControlPlane
from infra.local_kubernetes.kubectl_server import Reply, run
from infra.local_kubernetes.manifests import K8S, ROOT
from infra.local_kubernetes.network import Address
from infra.local_kubernetes.pods import PodFailedError
from infra.local_kubernetes.rayjobs import bucket_folder

ACCESS, TRIAL, RESULTS = 3, 5, 7  # steps of the guide
STEPS = range(2, RESULTS + 1)
PACKAGES = ("cluster", "infra", "jobs", "vgan")
LOGIN = """
import base64, sys, urllib.request
login = base64.b64encode(f"admin:{sys.stdin.read().strip().splitlines()[-1]}".encode()).decode()
request = urllib.request.Request("http://localhost:5000/api/2.0/mlflow/experiments/search?max_results=1")
request.add_header("Authorization", f"Basic {login}")
print("logged in", urllib.request.urlopen(request, timeout=60).status)
"""


def block(step: int) -> str:
    """Return the shell commands of a step of the guide."""
    page = (K8S / "README.md").read_text()
    text = re.split(r"^\*\*\d+\. ", page, flags=re.MULTILINE)[step]
    (commands,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return str(commands)


def script(last: int) -> str:
    """Return the commands of the steps up to `last` as one shell script.

    `kubectl step N` announces each step; a pause of 2 s after each step stands for the user's own.
    """
    lines = ["set -euo pipefail"]
    for step in range(STEPS[0], last + 1):
        commands = block(step)
        if step == RESULTS:  # the password is used here and not printed
            forwarding, password = (line.partition(" #")[0] for line in commands.splitlines())
            commands = f"{forwarding}\nsleep 2\n{password} | python -c {shlex.quote(LOGIN)}"
        lines += [f"kubectl step {step}", commands, "sleep 2"]
    return "\n".join(lines)


def copy_code(user: Path) -> Path:
    """Copy the code to `checkout` in the user's folder, where the user's shell runs; return the copy's folder."""
    folder = user / "checkout"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run_guide(control_plane: ControlPlane, laptop: Address, last: int) -> None:
    """Run the guide's steps up to `last`; their output goes to the file `log` in the user's folder.

    Args:
        control_plane: Handler of the kubectl commands.
        laptop: Address of the user's machine, which has its own ports.
        last: Last step to run.

    Raises:
        PodFailedError: A command failed, or its result is not what the guide states.
    """
    user, log, current_step = control_plane.user, control_plane.user / "log", 0
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(user),
        "LANG": "C.UTF-8",
    }
    with ExitStack() as current:

        def answer(args: list[str], text: str) -> Reply:
            nonlocal current_step
            if args[0] != "step":
                return control_plane.answer(args, text)
            current.close()
            check_step(control_plane, current_step)
            current_step = int(args[1])
            if current_step == TRIAL:
                control_plane.add_node()
            current.enter_context(control_plane.steps.step(f"guide, step {current_step}: its other commands"))
            return Reply()

        command = ["nsenter", f"--net=/run/netns/{laptop.namespace}", "bash", "-c", script(last)]
        if run(command, answer, log, env=env, folder=user / "checkout"):
            lines = log.read_text(errors="replace").strip().splitlines()
            raise PodFailedError(f"a command of the guide failed: {lines[-1:]} ({log})")
    check_step(control_plane, current_step)


def check_step(control_plane: ControlPlane, step: int) -> None:
    """Check the results of a finished step.

    Raises:
        PodFailedError: The token's file is readable by others, or videos are missing from the dataset.
    """
    if step == ACCESS:
        with control_plane.steps.step("guide, step 3: the token's file"):
            if (control_plane.user / ".ray-token").stat().st_mode & 0o077:
                raise PodFailedError("other users can read it")
    if step == TRIAL:
        control_plane.remove_node()
        with control_plane.steps.step("guide, step 5: its dataset") as notes:
            counts = json.loads((bucket_folder(control_plane.cluster) / "try/manifest.json").read_text())["counts"]
            num_videos = len(list((control_plane.user / "checkout/videos").iterdir()))
            if counts["sources"] != num_videos:
                raise PodFailedError(f"{num_videos} videos were copied, and the manifest counts {counts}")
            notes.append(f"{num_videos} videos in the store, prepared, {counts['clips']} clips")
