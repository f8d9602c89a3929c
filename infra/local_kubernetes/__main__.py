"""`make rehearse`: run the manifests of overlay `local` on this machine without Kubernetes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from infra.local_kubernetes.control_plane import ControlPlane, check_tracking
from infra.local_kubernetes.guide_runner import RESULTS, STEPS, TRIAL, copy_code, run_guide
from infra.local_kubernetes.images import image_disks
from infra.local_kubernetes.manifests import Manifest, Namespace, build, iter_values
from infra.local_kubernetes.network import network
from infra.local_kubernetes.pods import (
    Disk,
    PodFailedError,
    env_prefix,
    host_filesystem,
    kubelet,
    missing_programs,
)
from infra.local_kubernetes.rayjobs import NUM_VIDEOS
from infra.local_kubernetes.step_log import StepLog
from jobs import cli
from vgan.errors import InputError
from vgan.options import option
from vgan.synthetic import DEFAULT_CLASSES, make_action_set

ABOUT = """Run the Kubernetes manifests of overlay `local` on this machine, without a cluster or a registry. Every pod
runs as its manifest specifies, in its own network namespace with the NetworkPolicies enforced. A shell on the user's
side runs the commands of the guide (infra/k8s/README.md, steps 2 to 7) unchanged; its three RayJobs are reduced in
size. Needs root, kubectl, bubblewrap, iproute2, nftables and PostgreSQL.

  make rehearse                  pods use this machine's programs and Python environment
  make rehearse IMAGE=on         pods use the built images (make image)
"""


@dataclass(frozen=True, kw_only=True)
class RehearsalConfig:
    """Settings of a local run of the manifests."""

    out: str = option(
        "out/rehearsal", "folder for logs, volumes and databases; the contents of an earlier run are removed", "common"
    )
    mlflow: str = option(
        "",
        "Python environment of the MLflow server, from infra/image/mlflow.txt (make rehearse creates it)",
        "required",
    )
    image: bool = option(
        False,
        "on: Ray's and MLflow's pods run from the images of make image; off: from this machine's environment",
        "common",
    )
    last_step: int = option(RESULTS, "last step of the guide to run, 2 to 7", "common")

    def __post_init__(self) -> None:
        if self.last_step not in STEPS:
            raise ValueError(f"last_step must be 2 to {RESULTS}, got {self.last_step}")


def main(steps: StepLog, config: RehearsalConfig) -> None:
    """Run all steps and print the table of steps, also after a failure."""
    check_machine(config)
    out = Path(config.out).expanduser().absolute()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            rehearse(config, out, steps, stack)
    except PodFailedError as error:
        steps.failed = True
        print(f"\nFAILED: {error}")
    finally:
        print(f"\n{steps.table()}\nlogs: {out}/user/log, {out}/pods/*/log", flush=True)


def check_machine(config: RehearsalConfig) -> None:
    """Check the requirements that can be checked before anything is started.

    Raises:
        InputError: The process is not root, or a program or environment is missing.
    """
    if os.geteuid():
        raise InputError("pods run as other users in their own networks, which requires root: sudo make rehearse")
    if missing := missing_programs():
        raise InputError(
            f"{', '.join(missing)} not found: install iproute2, nftables, util-linux and bubblewrap with your packages"
        )
    if not config.mlflow or not (Path(config.mlflow) / "bin/mlflow").exists():
        raise InputError(f"mlflow={config.mlflow!r} is no environment with an MLflow server: make rehearse creates one")
    if not list(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        raise InputError("no PostgreSQL below /usr/lib/postgresql: install the package postgresql")


def rehearse(config: RehearsalConfig, out: Path, steps: StepLog, stack: ExitStack) -> None:
    """Run the steps in order; everything they start ends when `stack` closes."""
    user = out / "user"
    with steps.step("build the manifests") as notes:
        namespace = Namespace(build("local"), secrets={})
        notes.append(f"{len(namespace.manifests)} manifests")
    with steps.step("make synthetic videos and a labeled set"):
        make_inputs(user, copy_code(user), out / "claims/datasets")
    net = stack.enter_context(network(namespace.of_kind("NetworkPolicy")))
    disks = host_disks(config, out)
    if config.image:
        with steps.step("mount the images"):
            images = {c["image"] for c in containers(namespace) if c["image"].startswith("scene-dynamics-")}
            disks |= stack.enter_context(image_disks(*sorted(images)))
    cluster = stack.enter_context(kubelet(namespace, net, disks, out))
    control_plane = ControlPlane(cluster, user, steps, running=stack)
    with net.address("laptop", {}) as laptop:
        run_guide(control_plane, laptop, config.last_step)
    if config.last_step < TRIAL:
        return
    with steps.step("MLflow: runs in PostgreSQL, artifacts in S3") as notes:
        notes += check_tracking(control_plane)


def host_disks(config: RehearsalConfig, out: Path) -> dict[str, Disk]:
    """Return a disk of this machine's files for each image of the manifests, by image name without tag."""
    prefix, base = env_prefix()
    host = host_filesystem(prefix, base)
    # DeepSpeed's extension was built at set-up; torch writes a lock into its folder when it loads it.
    ops = out / "torch_extensions"
    shutil.copytree(prefix / "torch_extensions", ops)
    for path in (ops, *ops.rglob("*")):
        os.chown(path, 1000, 1000)
    ray = replace(host, over=(*host.over, "--bind", str(ops), str(prefix / "torch_extensions")))
    server = Path(config.mlflow).absolute()
    return {
        "scene-dynamics-cpu": ray,
        "scene-dynamics-mlflow": host_filesystem(server, base),
        "postgres": host,
        "rclone/rclone": host,
    }


def containers(namespace: Namespace) -> Iterator[Manifest]:
    """Iterate over every container of the manifests."""
    for manifest in namespace.manifests:
        yield from (value for _, value in iter_values(manifest) if isinstance(value, dict) and "image" in value)


def make_inputs(user: Path, checkout: Path, claim: Path) -> None:
    """Make synthetic videos and a labeled set at the paths of the guide, and an empty volume for the labeled set."""
    make_videos(checkout / "videos")
    make_action_set(user / "data/ucf101", groups=3, size=(90, 120))
    claim.mkdir(parents=True)
    os.chown(claim, 1000, 1000)


def make_videos(folder: Path) -> None:
    """Make a new folder of numbered videos; with UCF101's file names a sweep would treat them as test videos."""
    make_action_set(folder, num_frames=100, size=(120, 160), groups=NUM_VIDEOS // len(DEFAULT_CLASSES), seed=1)
    for number, path in enumerate(sorted((folder / "UCF-101").rglob("*.avi"))):
        path.rename(folder / f"video_{number:02d}.avi")
    for part in ("UCF-101", "ucfTrainTestlist"):
        shutil.rmtree(folder / part)


if __name__ == "__main__":
    steps = StepLog()
    raise SystemExit(cli.run(partial(main, steps), RehearsalConfig, ABOUT) or int(steps.failed))
