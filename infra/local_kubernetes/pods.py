"""Pods as sandboxed processes with their own network, process ids, file system and user, as the manifests specify.

bubblewrap creates each sandbox. Of the machine only its programs (or an image's), the Python environment, the code and
the pod's volumes are visible. The container's command is process 1 and runs as its `runAsUser` without capabilities;
when it ends, all processes that it started end too.
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

from infra.local_kubernetes.manifests import ROOT, Manifest, Namespace, expand, number
from infra.local_kubernetes.network import Address, Network

HOME, CODE = "/home/scene", "/srv/scene"
USERS = "root:x:0:0::/root:/bin/sh\nscene:x:1000:1000::/home/scene:/bin/bash\npostgres:x:999:999::/tmp:/bin/sh\n"
TMP = ("--perms", "1777", "--tmpfs", "/tmp")  # noqa: S108 - private to the pod
OVERLAY = 'mount -t overlay overlay -o "lowerdir=$1,upperdir=$2,workdir=$3" "$4"; shift 4; exec "$@"'
DOMAINS = ("", ".scene", ".scene.svc.cluster.local")


class PodFailedError(Exception):
    """Failure of a pod or command, or a result that differs from what the manifests specify."""


@dataclass(frozen=True)
class Disk:
    """File system of an image as arguments for bubblewrap, and the environment variables that the image sets."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    over: tuple[str, ...] = ()  # mounted after the pod's volumes: an environment may lie below /tmp
    image: Path | None = None  # folder of an image's files; each pod has a writable layer above it


def host_filesystem(prefix: Path, base: Path) -> Disk:
    """Return a disk with this machine's programs, a Python environment and the code.

    Args:
        prefix: Folder of the Python environment.
        base: Folder where that environment's interpreter is installed.
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
    """Return a disk with only the files of an image, mounted at `files`."""
    return Disk(TMP, environment, image=files)


def _bind(option: str, folder: Path, target: str) -> list[str]:
    """Return bubblewrap's arguments that mount a folder at `target`.

    The parents of `target` are created first with `--dir`: parents that a mount creates are accessible to root only.
    """
    parents = [str(parent) for parent in reversed(Path(target).parents)][1:]
    return [*(arg for parent in parents for arg in ("--dir", parent)), option, str(folder), target]


@dataclass
class Pod:
    """A running pod."""

    name: str
    address: Address
    process: subprocess.Popen[bytes]
    main: int  # process id, outside the pod, of the pod's process 1
    user: int
    log: Path
    environment: dict[str, str]
    grace_s: float = 30.0

    def alive(self) -> bool:
        """Return True while the pod's main process runs."""
        return self.process.poll() is None

    def text(self) -> str:
        """Return the output of the pod so far."""
        return self.log.read_text(errors="replace")

    def stop(self) -> float:
        """End the pod with SIGTERM, and SIGKILL after its grace period, as Kubernetes does; return its seconds."""
        started = time.monotonic()
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(self.grace_s)
        self.kill()
        return time.monotonic() - started

    def kill(self) -> None:
        """End the pod at once, as when its machine fails; the kernel ends all of its processes with process 1."""
        self._signal(signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def _signal(self, signum: signal.Signals) -> None:
        """Send a signal to process 1."""
        if self.alive():  # afterwards another process may have its id
            with suppress(ProcessLookupError):
                os.kill(self.main, signum)

    def run(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout_s: float = 600,
    ) -> tuple[int, str]:
        """Run a command inside the pod, as `kubectl exec` does; return its exit code and output.

        Args:
            command: Program and arguments.
            env: Environment to use instead of the pod's.
            stdin: Standard input of the command.
            timeout_s: Seconds after which subprocess.TimeoutExpired is raised.
        """
        if not self.alive():
            return 1, f"{self.name} has ended"
        inside = ["nsenter", f"--target={self.main}", "--mount", "--net", "--pid", "--ipc", "--uts", "--root", "--wd"]
        inside += ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", "--no-new-privs"]
        inside += command
        environment = self.environment if env is None else env
        result = subprocess.run(
            inside, env=environment, input=stdin, capture_output=True, timeout=timeout_s, check=False
        )
        return result.returncode, (result.stdout + result.stderr).decode(errors="replace")


@dataclass(frozen=True)
class _PodContext:
    """Specification, address and folder shared by the containers of a pod."""

    spec: Manifest
    address: Address
    folder: Path

    @property
    def user(self) -> int:
        """User id of the pod's processes."""
        return int(self.spec["securityContext"]["runAsUser"])


@dataclass
class Kubelet:
    """Starter of pods; created by `kubelet`, which ends all pods that still run."""

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
        """Run the init containers of a pod, then its container for the duration of the block.

        Args:
            name: Name of the pod, which is its host name too.
            template: Pod template with a `spec`.
            labels: Labels of the template and of the operator.
            command: Command of the container if the operator generates one; otherwise the manifest's.
            extra: Environment variables that the operator adds.
            services: Host names under which other pods reach it.

        Raises:
            PodFailedError: An init container failed.
        """
        spec = template["spec"]
        with self.network.address(name, dict(labels)) as address:
            self._write_hosts(address, services)
            context = _PodContext(spec, address, self.folder / "pods" / name)
            for container in spec.get("initContainers", []):
                process, _ = self._start(container, context, log=container["name"])
                if process.wait():
                    log = context.folder / container["name"]
                    raise PodFailedError(f"init container {container['name']} of {name} failed: {log}")
            (container,) = spec["containers"]
            process, main = self._start(container, context, command=command, extra=extra)
            pod = Pod(
                name=name,
                address=address,
                process=process,
                main=main,
                user=context.user,
                log=context.folder / "log",
                environment=self._environment(container, context, extra),
                grace_s=spec.get("terminationGracePeriodSeconds", 30),
            )
            self.running.append(pod)
            try:
                yield pod
            finally:
                # A second Ctrl-C must not interrupt the clean-up.
                handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
                pod.kill()
                self.running.remove(pod)
                signal.signal(signal.SIGINT, handler)

    def _start(
        self,
        container: Manifest,
        context: _PodContext,
        *,
        command: Sequence[str] = (),
        extra: Mapping[str, str] | None = None,
        log: str = "log",
    ) -> tuple[subprocess.Popen[bytes], int]:
        """Start a container; return bubblewrap's process, and the id, outside the pod, of the pod's process 1."""
        environment = self.namespace.environment(container)
        words = [*container.get("command", []), *container.get("args", [])]
        manifest_command = [expand(word, environment) for word in words]
        address, folder, user = context.address, context.folder, context.user
        info_read, info_write = os.pipe()
        shm = number(container["resources"]["limits"]["memory"])
        disk = self._disk(container)
        bubblewrap = [
            *("nsenter", f"--net=/run/netns/{address.namespace}", *self._layer(disk, folder), *disk.arguments),
            *([] if disk.image else ["--ro-bind", str(self.folder / "passwd"), "/etc/passwd"]),
            *("--proc", "/proc", "--dev", "/dev"),
            *("--size", str(shm), "--perms", "1777", "--tmpfs", "/dev/shm"),  # noqa: S108
            *_bind("--bind", self._owned_folder(folder / "home", user), HOME),
            *("--ro-bind", str(self.folder / "hosts"), "/etc/hosts"),
            *("--ro-bind", str(self.folder / "resolv.conf"), "/etc/resolv.conf"),
            *(*self._mounts(container, context), *disk.over),
            *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--hostname", address.name, "--as-pid-1"),
            *("--die-with-parent", "--chdir", container.get("workingDir", "/"), "--info-fd", str(info_write)),
            *("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP", "--"),
            *("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--inh-caps=-all"),
            *("--bounding-set=-all", "--no-new-privs", "--", *(command or manifest_command)),
        ]
        with open(folder / log, "ab") as out:
            process = subprocess.Popen(
                bubblewrap,
                env=self._environment(container, context, extra),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=[info_write],
                start_new_session=True,  # Ctrl-C is handled by this process only
            )
        os.close(info_write)
        return process, _child_pid(info_read) or process.pid

    def _layer(self, disk: Disk, folder: Path) -> list[str]:
        """Return the start of bubblewrap's command, with an overlay of the image's files as root if there is an image.

        The overlay's writable layer is the pod's own, and its mount ends with the pod.
        """
        if disk.image is None:
            return ["bwrap"]
        layers = [folder / "layer" / name for name in ("upper", "work", "root")]
        for layer in layers:
            layer.mkdir(parents=True, exist_ok=True)
        mount = ["unshare", "--mount", "sh", "-euc", OVERLAY, "sh", str(disk.image), *map(str, layers)]
        return [*mount, "bwrap", "--bind", str(layers[-1]), "/"]

    def _environment(
        self, container: Manifest, context: _PodContext, extra: Mapping[str, str] | None
    ) -> dict[str, str]:
        """Return the environment of a container: the image's, the manifest's, then `extra`."""
        variables = {**self.namespace.environment(container), **(extra or {})}
        return {**self._disk(container).environment, "HOME": HOME, "HOSTNAME": context.address.name, **variables}

    def _disk(self, container: Manifest) -> Disk:
        """Return the disk of a container's image."""
        return self.disks[container["image"].rsplit(":", 1)[0]]

    def _mounts(self, container: Manifest, context: _PodContext) -> list[str]:
        """Return bubblewrap's arguments for a container's volumes; only claims are shared between pods."""
        volumes = {v["name"]: v for v in context.spec.get("volumes", [])}
        arguments = []
        for mount in container.get("volumeMounts", []):
            volume = volumes.get(mount["name"], {})
            if "persistentVolumeClaim" in volume:
                folder = self.claims / volume["persistentVolumeClaim"]["claimName"]
            elif "secret" in volume or "emptyDir" in volume:
                folder = self._owned_folder(context.folder / mount["name"], context.user)
            else:  # a StatefulSet's claim
                folder = self._owned_folder(self.claims / f"{context.folder.name}-{mount['name']}", context.user)
            for item in volume.get("secret", {}).get("items", []):
                file = folder / item["path"]
                file.write_text(self.namespace.secrets[volume["secret"]["secretName"]][item["key"]])
                file.chmod(0o400)
                os.chown(file, context.user, context.user)
            arguments += _bind("--ro-bind" if mount.get("readOnly") else "--bind", folder, mount["mountPath"])
        return arguments

    def _owned_folder(self, folder: Path, user: int) -> Path:
        """Create a folder if needed and make the pod's user its owner, in place of `fsGroup`."""
        folder.mkdir(parents=True, exist_ok=True)
        os.chown(folder, user, user)
        return folder

    def _write_hosts(self, new: Address, services: Sequence[str]) -> None:
        """Add a pod and its services to the hosts file, which replaces the cluster's DNS.

        The file is written in context, so running pods see the change.
        """
        path = self.folder / "hosts"
        lines = path.read_text().splitlines() if path.exists() else ["127.0.0.1 localhost"]
        names = [f"{name}{domain}" for name in services for domain in DOMAINS]
        other_lines = [line for line in lines if not set(line.split()[1:]) & {*names, new.name}]
        path.write_text("\n".join([*other_lines, f"{new.ip} {' '.join([new.name, *names])}"]) + "\n")


@contextmanager
def kubelet(namespace: Namespace, network: Network, disks: Mapping[str, Disk], folder: Path) -> Iterator[Kubelet]:
    """Create a kubelet that keeps pods' files in `folder`, and kill the remaining pods at the end of the block."""
    (folder / "pods").mkdir(parents=True)
    (folder / "passwd").write_text(USERS)
    (folder / "hosts").write_text("127.0.0.1 localhost\n")
    (folder / "resolv.conf").write_text(
        "nameserver 127.0.0.1\n"
    )  # refuses at once; a silent name server would delay gRPC
    result = Kubelet(namespace, network, disks, folder, folder / "claims")
    try:
        yield result
    finally:
        for pod in result.running:
            pod.kill()


def _child_pid(info: int) -> int:
    """Read the child's process id that bubblewrap writes to a descriptor, and close it; return 0 if there is none."""
    with os.fdopen(info, "rb", buffering=0) as file:
        text = b""
        while not text.rstrip().endswith(b"}") and (more := file.read(1000)):
            text += more
    return int(json.loads(text)["child-pid"]) if text else 0


def env_prefix() -> tuple[Path, Path]:
    """Return the folders of this Python environment and of the installed interpreter."""
    return Path(sys.prefix), Path(sys.base_prefix)


def missing_programs() -> list[str]:
    """List the programs that pods need and this machine lacks."""
    return [p for p in ("ip", "nft", "nsenter", "bwrap", "setpriv") if shutil.which(p) is None]
