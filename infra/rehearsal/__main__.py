"""`make rehearse`: the manifests of overlay `local`, run on this machine without Kubernetes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from infra.rehearsal.control import Control, tracked
from infra.rehearsal.guide import LOOK, RESULTS, STEPS, check_out, follow
from infra.rehearsal.images import image_disks
from infra.rehearsal.manifests import Manifest, Namespace, build, walk
from infra.rehearsal.network import network
from infra.rehearsal.pods import Disk, PodFailedError, kubelet, machine_disk, missing_programs, own_prefix
from infra.rehearsal.rayjobs import VIDEOS
from infra.rehearsal.steps import Steps
from jobs import cli
from vgan.errors import InputError
from vgan.options import option
from vgan.synthetic import DEFAULT_CLASSES, make_action_set

ABOUT = """Rehearse the Kubernetes manifests of overlay `local` on this machine: no cluster, no registry. Every pod runs
as its manifest says, in a network of its own that keeps the NetworkPolicies. A user's shell follows the guide
(infra/k8s/README.md, steps 2 to 7) word for word; its three RayJobs are made small. Needs root, kubectl, bubblewrap,
iproute2, nftables and PostgreSQL.

  make rehearse                  pods of this machine's programs and environment
  make rehearse IMAGE=on         of the built images (make image)
"""


@dataclass(frozen=True, kw_only=True)
class RehearsalConfig:
    """How the manifests are rehearsed."""

    out: str = option(
        "out/rehearsal", "folder for logs, volumes and databases; what an earlier one left there is removed"
    )
    mlflow: str = option("", "environment of the MLflow server, of infra/image/mlflow.txt (make rehearse makes it)")
    image: bool = option(False, "on: Ray's and MLflow's pods from the images of make image; off: this environment")
    last: int = option(RESULTS, "the last step of the guide to follow, 2 to 7")

    def __post_init__(self) -> None:
        if self.last not in STEPS:
            raise ValueError(f"last must be 2 to {RESULTS}, got {self.last}")


def main(steps: Steps, config: RehearsalConfig) -> None:
    """Run every step; the table is printed however it ends."""
    check_machine(config)
    out = Path(config.out).expanduser().absolute()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            rehearse(config, out, steps, stack)
    except PodFailedError as fault:
        steps.failed = True
        print(f"\nFAILED: {fault}")
    finally:
        print(f"\n{steps.table()}\nlogs: {out}/user/log, {out}/pods/*/log", flush=True)


def check_machine(config: RehearsalConfig) -> None:
    """Raise InputError where something is missing that can be told before anything is started."""
    if os.geteuid():
        raise InputError("pods get users and networks of their own, which takes root: sudo make rehearse")
    if missing := missing_programs():
        raise InputError(
            f"{', '.join(missing)} not found: install iproute2, nftables, util-linux and bubblewrap with your packages"
        )
    if not config.mlflow or not (Path(config.mlflow) / "bin/mlflow").exists():
        raise InputError(f"mlflow={config.mlflow!r} is no environment with an MLflow server: make rehearse makes one")
    if not list(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        raise InputError("no PostgreSQL below /usr/lib/postgresql: install the package postgresql")


def rehearse(config: RehearsalConfig, out: Path, steps: Steps, stack: ExitStack) -> None:
    """The steps in order. What they start ends with `stack`."""
    user = out / "user"
    with steps.step("manifests") as told:
        namespace = Namespace(build("local"), secrets={})
        told.append(f"{len(namespace.manifests)} manifests")
    with steps.step("videos and a labelled set, drawn"):
        draw_inputs(user, check_out(user), out / "claims/datasets")
    net = stack.enter_context(network(namespace.of_kind("NetworkPolicy")))
    found = disks(config, out)
    if config.image:
        with steps.step("images"):
            wanted = {c["image"] for c in containers(namespace) if c["image"].startswith("scene-dynamics-")}
            found |= stack.enter_context(image_disks(*sorted(wanted)))
    cluster = stack.enter_context(kubelet(namespace, net, found, out))
    control = Control(cluster, user, steps, running=stack)
    with net.address("laptop", {}) as laptop:
        follow(control, laptop, config.last)
    if config.last < LOOK:
        return
    with steps.step("MLflow: runs in PostgreSQL, artifacts in S3") as told:
        told += tracked(control)


def disks(config: RehearsalConfig, out: Path) -> dict[str, Disk]:
    """What each image holds."""
    prefix, base = own_prefix()
    own = machine_disk(prefix, base)
    # DeepSpeed's extension was built by the set-up; torch locks its folder when it loads it.
    ops = out / "torch_extensions"
    shutil.copytree(prefix / "torch_extensions", ops)
    for path in (ops, *ops.rglob("*")):
        os.chown(path, 1000, 1000)
    ray = replace(own, over=(*own.over, "--bind", str(ops), str(prefix / "torch_extensions")))
    server = Path(config.mlflow).absolute()
    return {
        "scene-dynamics-cpu": ray,
        "scene-dynamics-mlflow": machine_disk(server, base),
        "postgres": own,
        "rclone/rclone": own,
    }


def containers(namespace: Namespace) -> Iterator[Manifest]:
    """Every container that a manifest names."""
    for manifest in namespace.manifests:
        yield from (value for _, value in walk(manifest) if isinstance(value, dict) and "image" in value)


def draw_inputs(user: Path, checkout: Path, claim: Path) -> None:
    """Videos and a labelled set where the guide has them, and an empty volume for the latter."""
    draw_videos(checkout / "videos")
    make_action_set(user / "data/ucf101", groups=3, size=(90, 120))
    claim.mkdir(parents=True)
    os.chown(claim, 1000, 1000)


def draw_videos(folder: Path) -> None:
    """A new folder of numbered videos; under UCF101's names a sweep would take them for test videos."""
    make_action_set(folder, num_frames=100, size=(120, 160), groups=VIDEOS // len(DEFAULT_CLASSES), seed=1)
    for number, path in enumerate(sorted((folder / "UCF-101").rglob("*.avi"))):
        path.rename(folder / f"video_{number:02d}.avi")
    for part in ("UCF-101", "ucfTrainTestlist"):
        shutil.rmtree(folder / part)


if __name__ == "__main__":
    steps = Steps()
    raise SystemExit(cli.run(partial(main, steps), RehearsalConfig, ABOUT) or int(steps.failed))
