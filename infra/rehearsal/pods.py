"""Pods as processes: their own network, process ids, file system and user, as the manifests say.

bubblewrap makes each: nothing of the machine is seen but its programs (or an image's), the environment, the code and
the pod's volumes. The container's command is its process 1, runs as its `runAsUser` without any capability, and takes
everything it started with it when it ends.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from infra.rehearsal.manifests import ROOT, Manifest, Namespace, expand, number
from infra.rehearsal.network import Address, Network

HOME, CODE = "/home/scene", "/srv/scene"
USERS = "root:x:0:0::/root:/bin/sh\nscene:x:1000:1000::/home/scene:/bin/bash\npostgres:x:999:999::/tmp:/bin/sh\n"
TMP = ("--perms", "1777", "--tmpfs", "/tmp")  # noqa: S108 - the pod's own
OVERLAY = 'mount -t overlay overlay -o "lowerdir=$1,upperdir=$2,workdir=$3" "$4"; shift 4; exec "$@"'
DOMAINS = ("", ".scene", ".scene.svc.cluster.local")


class PodFailedError(Exception):
    """Something did not go as the manifests promise."""


@dataclass(frozen=True)
class Disk:
    """What an image holds, for bubblewrap, and the environment that it sets."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    over: tuple[str, ...] = ()  # mounted after the pod's volumes: an environment may lie below /tmp
    image: Path | None = None  # an image's files, to which each pod adds a layer of its own


def machine_disk(prefix: Path, base: Path) -> Disk:
    """A disk of this machine's own programs, the Python environment at `prefix` and the code.

    Args:
        base: where that environment's interpreter is installed.
    """
    arguments = [*TMP, "--ro-bind", "/usr", "/usr", "--dir", "/etc"]
    for name in ("alternatives", "fonts", "ld.so.cache", "localtime", "nsswitch.conf", "protocols", "services", "ssl"):
        arguments += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for name in ("bin", "sbin", "lib", "lib64"):  # links into /usr on most systems
        path = Path("/") / name
        arguments += ["--symlink", str(path.readlink()), str(path)] if path.is_symlink() else []
    over = []
    for folder in dict.fromkeys((base, prefix)):
        over += _bind("--ro-bind", folder, str(folder)) if not str(folder).startswith("/usr") else []
    for package in ("vgan", "cluster", "jobs"):
        arguments += _bind("--ro-bind", ROOT / package, f"{CODE}/{package}")
    postgres = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    programs = [str(prefix / "bin"), *map(str, postgres[-1:]), "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin"]
    environment = {"PATH": ":".join(programs), "PYTHONPATH": CODE, "LANG": "C.UTF-8"}
    return Disk(tuple(arguments), environment, tuple(over))


def image_disk(files: Path, environment: Mapping[str, str]) -> Disk:
    """A disk of an image's files, where they are mounted, and of nothing else."""
    return Disk(TMP, environment, image=files)


def _bind(how: str, folder: Path, place: str) -> list[str]:
    """A folder at its place, whose parents everybody may pass: bubblewrap makes them for root alone."""
    parents = [str(parent) for parent in reversed(Path(place).parents)][1:]
    return [*(word for parent in parents for word in ("--dir", parent)), how, str(folder), place]


@dataclass
class Pod:
    """A running pod."""

    name: str
    address: Address
    process: subprocess.Popen[bytes]
    main: int  # process 1 of the pod, as it is called outside
    user: int
    log: Path
    environment: dict[str, str]
    grace_s: float = 30.0

    def alive(self) -> bool:
        return self.process.poll() is None

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self) -> float:
        """End it as Kubernetes does: SIGTERM, and SIGKILL after its grace period. Gives the seconds it took."""
        started = time.monotonic()
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(self.grace_s)
        self.kill()
        return time.monotonic() - started

    def kill(self) -> None:
        """End it as a lost machine does; the kernel ends all of its processes with the first."""
        self._signal(signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def _signal(self, which: signal.Signals) -> None:
        if self.alive():  # its number may be another's afterwards
            with suppress(ProcessLookupError):
                os.kill(self.main, which)

    def run(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        given: bytes = b"",
        timeout_s: float = 600,
    ) -> tuple[int, str]:
        """Exit code and output of a command inside the pod, as `kubectl exec` runs it.

        Args:
            env: instead of the pod's own.
            given: its standard input.
        """
        if not self.alive():
            return 1, f"{self.name} has ended"
        inside = ["nsenter", f"--target={self.main}", "--mount", "--net", "--pid", "--ipc", "--uts", "--root", "--wd"]
        inside += ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", "--no-new-privs"]
        inside += command
        environment = self.environment if env is None else env
        done = subprocess.run(inside, env=environment, input=given, capture_output=True, timeout=timeout_s, check=False)
        return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


@dataclass(frozen=True)
class _Place:
    """Where a pod's containers run."""

    spec: Manifest
    address: Address
    folder: Path

    @property
    def user(self) -> int:
        return int(self.spec["securityContext"]["runAsUser"])


@dataclass
class Kubelet:
    """Starts pods and ends them all when its block ends."""

    namespace: Namespace
    network: Network
    disks: Mapping[str, Disk]  # by image, without its tag
    folder: Path
    claims: Path  # a folder for each persistent volume claim
    running: list[Pod] = field(default_factory=list)

    @contextmanager
    def pod(
        self,
        name: str,
        template: Manifest,
        labels: Mapping[str, str],
        *,
        command: Sequence[str] = (),
        extra: Mapping[str, str] | None = None,
        services: Sequence[str] = (),
    ) -> Iterator[Pod]:
        """A pod of `template` for the length of the block; its init containers have run.

        Args:
            labels: those that its template names and the operator's.
            command: for its container, where the operator makes one up.
            extra: more environment, likewise.
            services: names by which other pods find it.
        """
        spec = template["spec"]
        with self.network.address(name, dict(labels)) as address:
            self._write_hosts(address, services)
            place = _Place(spec, address, self.folder / "pods" / name)
            for container in spec.get("initContainers", []):
                process, _ = self._start(container, place, log=container["name"])
                if process.wait():
                    log = place.folder / container["name"]
                    raise PodFailedError(f"init container {container['name']} of {name} failed: {log}")
            (container,) = spec["containers"]
            process, main = self._start(container, place, command=command, extra=extra)
            pod = Pod(
                name=name,
                address=address,
                process=process,
                main=main,
                user=place.user,
                log=place.folder / "log",
                environment=self._environment(container, place, extra),
                grace_s=spec.get("terminationGracePeriodSeconds", 30),
            )
            self.running.append(pod)
            try:
                yield pod
            finally:
                impatient = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave the rest
                pod.kill()
                self.running.remove(pod)
                signal.signal(signal.SIGINT, impatient)

    def _start(
        self,
        container: Manifest,
        place: _Place,
        *,
        command: Sequence[str] = (),
        extra: Mapping[str, str] | None = None,
        log: str = "log",
    ) -> tuple[subprocess.Popen[bytes], int]:
        """The process of a container, and which one is its first inside."""
        stated = self.namespace.environment(container)
        own = [expand(word, stated) for word in [*container.get("command", []), *container.get("args", [])]]
        address, folder, user = place.address, place.folder, place.user
        info, told = os.pipe()
        shm = number(container["resources"]["limits"]["memory"])
        disk = self._disk(container)
        bubblewrap = [
            *("nsenter", f"--net=/run/netns/{address.namespace}", *self._layer(disk, folder), *disk.arguments),
            *([] if disk.image else ["--ro-bind", str(self.folder / "passwd"), "/etc/passwd"]),
            *("--proc", "/proc", "--dev", "/dev"),
            *("--size", str(shm), "--perms", "1777", "--tmpfs", "/dev/shm"),  # noqa: S108
            *_bind("--bind", self._own(folder / "home", user), HOME),
            *("--ro-bind", str(self.folder / "hosts"), "/etc/hosts"),
            *("--ro-bind", str(self.folder / "resolv.conf"), "/etc/resolv.conf"),
            *(*self._mounts(container, place), *disk.over),
            *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--hostname", address.name, "--as-pid-1"),
            *("--die-with-parent", "--chdir", container.get("workingDir", "/"), "--info-fd", str(told)),
            *("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP", "--"),
            *("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--inh-caps=-all"),
            *("--bounding-set=-all", "--no-new-privs", "--", *(command or own)),
        ]
        with open(folder / log, "ab") as out:
            process = subprocess.Popen(
                bubblewrap,
                env=self._environment(container, place, extra),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=[told],
                start_new_session=True,  # Ctrl-C is for us to handle, once
            )
        os.close(told)
        return process, _child_pid(info) or process.pid

    def _layer(self, disk: Disk, folder: Path) -> list[str]:
        """bubblewrap with the pod's root: the image's files under a layer of its own, gone with it; or nothing yet."""
        if disk.image is None:
            return ["bwrap"]
        places = [folder / "layer" / name for name in ("upper", "work", "root")]
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
        own = ["unshare", "--mount", "sh", "-euc", OVERLAY, "sh", str(disk.image), *map(str, places)]
        return [*own, "bwrap", "--bind", str(places[-1]), "/"]

    def _environment(self, container: Manifest, place: _Place, extra: Mapping[str, str] | None) -> dict[str, str]:
        stated = {**self.namespace.environment(container), **(extra or {})}
        return {**self._disk(container).environment, "HOME": HOME, "HOSTNAME": place.address.name, **stated}

    def _disk(self, container: Manifest) -> Disk:
        return self.disks[container["image"].rsplit(":", 1)[0]]

    def _mounts(self, container: Manifest, place: _Place) -> list[str]:
        """Its volumes: claims are shared by all pods, others are its own."""
        volumes = {v["name"]: v for v in place.spec.get("volumes", [])}
        found = []
        for mount in container.get("volumeMounts", []):
            volume = volumes.get(mount["name"], {})
            if "persistentVolumeClaim" in volume:
                folder = self.claims / volume["persistentVolumeClaim"]["claimName"]
            elif "secret" in volume or "emptyDir" in volume:
                folder = self._own(place.folder / mount["name"], place.user)
            else:  # a StatefulSet's claim
                folder = self._own(self.claims / f"{place.folder.name}-{mount['name']}", place.user)
            for item in volume.get("secret", {}).get("items", []):
                file = folder / item["path"]
                file.write_text(self.namespace.secrets[volume["secret"]["secretName"]][item["key"]])
                file.chmod(0o400)
                os.chown(file, place.user, place.user)
            found += _bind("--ro-bind" if mount.get("readOnly") else "--bind", folder, mount["mountPath"])
        return found

    def _own(self, folder: Path, user: int) -> Path:
        """The folder, made if need be, as `fsGroup` leaves it to a pod's user."""
        folder.mkdir(parents=True, exist_ok=True)
        os.chown(folder, user, user)
        return folder

    def _write_hosts(self, new: Address, services: Sequence[str]) -> None:
        """Names instead of the cluster's DNS. The file is written in place: pods that run see the change."""
        path = self.folder / "hosts"
        lines = path.read_text().splitlines() if path.exists() else ["127.0.0.1 localhost"]
        names = [f"{name}{domain}" for name in services for domain in DOMAINS]
        kept = [line for line in lines if not set(line.split()[1:]) & {*names, new.name}]
        path.write_text("\n".join([*kept, f"{new.ip} {' '.join([new.name, *names])}"]) + "\n")


@contextmanager
def kubelet(namespace: Namespace, network: Network, disks: Mapping[str, Disk], folder: Path) -> Iterator[Kubelet]:
    """Something that runs pods in `folder`, for the length of the block."""
    (folder / "pods").mkdir(parents=True)
    (folder / "passwd").write_text(USERS)
    (folder / "hosts").write_text("127.0.0.1 localhost\n")
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")  # refuses at once; one that is silent holds gRPC up
    made = Kubelet(namespace, network, disks, folder, folder / "claims")
    try:
        yield made
    finally:
        for pod in made.running:
            pod.kill()


def _child_pid(info: int) -> int:
    """The process that bubblewrap tells of on this descriptor, which is closed; 0 if it ended before."""
    with os.fdopen(info, "rb", buffering=0) as file:
        text = b""
        while not text.rstrip().endswith(b"}") and (more := file.read(1000)):
            text += more
    return int(json.loads(text)["child-pid"]) if text else 0


def own_prefix() -> tuple[Path, Path]:
    """This interpreter's environment, and where the interpreter itself is installed."""
    return Path(sys.prefix), Path(sys.base_prefix)


def missing_programs() -> list[str]:
    """Programs that pods need and this machine lacks."""
    return [p for p in ("ip", "nft", "nsenter", "bwrap", "setpriv") if shutil.which(p) is None]
