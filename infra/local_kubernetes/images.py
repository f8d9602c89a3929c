"""File systems of pods from images built by buildah."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.local_kubernetes.pods import Disk, image_disk
from vgan.errors import InputError


@contextmanager
def image_disks(*images: str) -> Iterator[dict[str, Disk]]:
    """Mount images such as `scene-dynamics-cpu:0.1.0` for the duration of the block, as disks by name without tag.

    Raises:
        InputError: buildah is not installed, or an image does not exist.
    """
    if shutil.which("buildah") is None:
        raise InputError("buildah not found, which stores the images: install it and run make image BUILDER=buildah")
    containers: list[str] = []
    try:
        disks = {}
        for image in images:
            try:
                containers.append(_buildah("from", "--pull-never", f"localhost/{image}"))
            except subprocess.CalledProcessError as error:
                raise InputError(f"no image {image}: make image BUILDER=buildah ({error.stderr.strip()})") from error
            config = json.loads(_buildah("inspect", "--type", "image", f"localhost/{image}"))["OCIv1"]["config"]
            environment = dict(entry.split("=", 1) for entry in config.get("Env", []))
            disks[image.rpartition(":")[0]] = image_disk(Path(_buildah("mount", containers[-1])), environment)
        yield disks
    finally:
        for container in containers:
            _buildah("rm", container)


def _buildah(*args: str) -> str:
    """Run buildah and return its output."""
    return subprocess.run(["buildah", *args], check=True, capture_output=True, text=True).stdout.strip()  # noqa: S607
