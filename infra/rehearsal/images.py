"""Images that buildah has built, as pods' disks."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.rehearsal.pods import Disk, image_disk
from vgan.errors import InputError


@contextmanager
def image_disks(*images: str) -> Iterator[dict[str, Disk]]:
    """Disks of images like `scene-dynamics-cpu:0.1.0` by name, mounted for the length of the block.

    Raises:
        InputError: there is no buildah, or no such image.
    """
    if shutil.which("buildah") is None:
        raise InputError("buildah not found, which holds the images: install it and run make image BUILDER=buildah")
    made: list[str] = []
    try:
        disks = {}
        for image in images:
            try:
                made.append(_buildah("from", "--pull-never", f"localhost/{image}"))
            except subprocess.CalledProcessError as fault:
                raise InputError(f"no image {image}: make image BUILDER=buildah ({fault.stderr.strip()})") from fault
            stated = json.loads(_buildah("inspect", "--type", "image", f"localhost/{image}"))["OCIv1"]["config"]
            environment = dict(entry.split("=", 1) for entry in stated.get("Env", []))
            disks[image.rpartition(":")[0]] = image_disk(Path(_buildah("mount", made[-1])), environment)
        yield disks
    finally:
        for container in made:
            _buildah("rm", container)


def _buildah(*words: str) -> str:
    return subprocess.run(["buildah", *words], check=True, capture_output=True, text=True).stdout.strip()  # noqa: S607
