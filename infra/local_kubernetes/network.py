"""Network of the pods: one network namespace per pod, connected by a router that enforces the NetworkPolicies.

The machine's own network is not changed: the router is a network namespace too, without a route to any other network.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from infra.local_kubernetes.policies import Labels, Manifest, open_ports
from vgan.errors import InputError

GATEWAY = "169.254.1.1"  # the router's end of every pod's link
SUBNET = "10.77.0.0"


@dataclass(frozen=True)
class Address:
    """Network namespace, IP address and labels of a pod."""

    name: str
    namespace: str
    ip: str
    labels: Labels = field(default_factory=dict)


@dataclass
class Network:
    """A router and the pods connected to it."""

    router: str
    policies: Sequence[Manifest]
    addresses: list[Address] = field(default_factory=list)
    _number: int = 0

    @contextmanager
    def address(self, name: str, labels: Labels) -> Iterator[Address]:
        """Connect a new pod for the duration of the block."""
        self._number += 1
        number = self._number
        address = Address(name, f"{self.router}-{number}", SUBNET[:-1] + str(number + 1), labels)
        inside, router = f"ip -n {address.namespace}", f"ip -n {self.router}"
        _run(f"ip netns add {address.namespace}")
        try:
            _run(f"ip link add eth0 netns {address.namespace} type veth peer name pod{number} netns {self.router}")
            _run(f"{inside} link set lo up")
            _run(f"{inside} address add {address.ip}/32 dev eth0")
            _run(f"{inside} link set eth0 up")
            _run(f"{inside} route add {GATEWAY} dev eth0")
            _run(f"{inside} route add default via {GATEWAY} src {address.ip}")
            _run(f"{router} address add {GATEWAY}/32 dev pod{number}")
            _run(f"{router} link set pod{number} up")
            _run(f"{router} route add {address.ip} dev pod{number}")
            self.addresses.append(address)
            self._apply_policies()
            yield address
        finally:
            if address in self.addresses:
                self.addresses.remove(address)
                self._apply_policies()
            _run(f"ip netns delete {address.namespace}")  # removes the link too

    def _apply_policies(self) -> None:
        """Set the router's rules: accept what the policies allow, reset and record all other connections."""
        rules = ["flush chain inet policies pass", "add rule inet policies pass ct state established,related accept"]
        for source in self.addresses:
            for target in self.addresses:
                ports = open_ports(self.policies, source.labels, target.labels) if source != target else set()
                pair = f"ip saddr {source.ip} ip daddr {target.ip}"
                if ports is None:
                    rules.append(f"add rule inet policies pass {pair} accept")
                elif ports:
                    port_list = ", ".join(map(str, sorted(ports)))
                    rules.append(f"add rule inet policies pass {pair} tcp dport {{ {port_list} }} accept")
        record = "add @refused { ip saddr . ip daddr . tcp dport } reject with tcp reset"
        rules.append(f"add rule inet policies pass meta l4proto tcp {record}")
        self._nft("\n".join(rules))

    def refused(self) -> set[tuple[str, str, int]]:
        """Return (source IP, target IP, port) of the connections refused since the previous call."""
        listing = self._nft("list set inet policies refused")
        self._nft("flush set inet policies refused")
        return {(a, b, int(port)) for a, b, port in re.findall(r"([\d.]+) \. ([\d.]+) \. (\d+)", listing)}

    def _nft(self, script: str) -> str:
        """Run nft commands in the router's namespace and return their output."""
        command = ["ip", "netns", "exec", self.router, "nft", "--numeric", "--file", "-"]
        return subprocess.run(command, input=script, check=True, capture_output=True, text=True).stdout


@contextmanager
def network(policies: Sequence[Manifest]) -> Iterator[Network]:
    """Create a router that enforces `policies`, for the duration of the block.

    Raises:
        InputError: This process may not create network namespaces.
    """
    router = f"scene-{os.getpid()}"
    try:
        _run(f"ip netns add {router}")
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        raise InputError(
            "pods need network namespaces, which this user may not create: run it as root, with iproute2 installed"
        ) from error
    try:
        net = Network(router, policies)
        _run(f"ip -n {router} link set lo up")
        _run(f"ip netns exec {router} sysctl --quiet --write net.ipv4.ip_forward=1")
        net._nft(
            "add table inet policies\n"
            "add set inet policies refused { type ipv4_addr . ipv4_addr . inet_service; flags dynamic; size 4096; }\n"
            "add chain inet policies pass { type filter hook forward priority 0; policy drop; }"
        )
        yield net
    finally:
        _run(f"ip netns delete {router}")


def _run(command: str) -> None:
    """Run a command given as words separated by spaces."""
    subprocess.run(command.split(), check=True, capture_output=True)
