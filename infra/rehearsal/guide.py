"""The guide's own commands (README.md of infra/k8s, steps 2 to 7), word for word, as a user's machine runs them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

from infra.rehearsal.api import Reply, run
from infra.rehearsal.control import Control
from infra.rehearsal.manifests import K8S, ROOT
from infra.rehearsal.network import Address
from infra.rehearsal.pods import PodFailedError
from infra.rehearsal.rayjobs import store

WAY_IN, LOOK, RESULTS = 3, 5, 7  # steps of the guide
STEPS = range(2, RESULTS + 1)
PACKAGES = ("cluster", "infra", "jobs", "vgan")
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
    return str(found)


def script(last: int) -> str:
    """The steps up to `last` as one shell's commands, each announced; a user takes a moment after each."""
    lines = ["set -euo pipefail"]
    for step in range(STEPS[0], last + 1):
        commands = block(step)
        if step == RESULTS:  # the password is shown to nobody here, but used
            forwarding, shown = (line.partition(" #")[0] for line in commands.splitlines())
            commands = f"{forwarding}\nsleep 2\n{shown} | python -c {shlex.quote(LOGIN)}"
        lines += [f"kubectl step {step}", commands, "sleep 2"]
    return "\n".join(lines)


def check_out(user: Path) -> Path:
    """A checkout of the code, where the user's shell is."""
    folder = user / "checkout"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def follow(control: Control, laptop: Address, last: int) -> None:
    """Run the steps; what they print goes into the file `log` of the user's folder.

    Args:
        laptop: the user's machine, whose ports are its own.
        last: the last step to follow.

    Raises:
        PodFailedError: a command failed, or did not do what the guide says.
    """
    user, log, at = control.user, control.user / "log", 0
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(user),
        "LANG": "C.UTF-8",
    }
    with ExitStack() as current:

        def answer(words: list[str], text: str) -> Reply:
            nonlocal at
            if words[0] != "step":
                return control.answer(words, text)
            current.close()
            finish(control, at)
            at = int(words[1])
            if at == LOOK:
                control.add_node()
            current.enter_context(control.steps.step(f"guide, step {at}: its other commands"))
            return Reply()

        inside = ["nsenter", f"--net=/run/netns/{laptop.namespace}", "bash", "-c", script(last)]
        if run(inside, answer, log, env=env, folder=user / "checkout"):
            lines = log.read_text(errors="replace").strip().splitlines()
            raise PodFailedError(f"a command of the guide failed: {lines[-1:]} ({log})")
    finish(control, at)


def finish(control: Control, step: int) -> None:
    """Check what a step has left."""
    if step == WAY_IN:
        with control.steps.step("guide, step 3: the token's file"):
            if (control.user / ".ray-token").stat().st_mode & 0o077:
                raise PodFailedError("others may read it")
    if step == LOOK:
        control.remove_node()
        with control.steps.step("guide, step 5: what it made") as told:
            counts = json.loads((store(control.cluster) / "try/manifest.json").read_text())["counts"]
            given = len(list((control.user / "checkout/videos").iterdir()))
            if counts["sources"] != given:
                raise PodFailedError(f"{given} videos were copied, and the manifest counts {counts}")
            told.append(f"{given} videos in the store, prepared, {counts['clips']} clips")
