"""Pods' addresses: each a network namespace of its own behind one router, which keeps the NetworkPolicies.

Nothing of it touches the machine's own network: the router is a namespace too, and leads nowhere else.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from infra.rehearsal.policies import Labels, Manifest, open_ports
from vgan.errors import InputError

GATEWAY = "169.254.1.1"  # the router's end of every pod's link
FIRST = "10.77.0.0"


@dataclass(frozen=True)
class Address:
    """A pod's place in the network."""

    name: str
    namespace: str
    ip: str
    labels: Labels = field(default_factory=dict)


@dataclass
class Network:
    """The router and the pods behind it."""

    router: str
    policies: Sequence[Manifest]
    there: list[Address] = field(default_factory=list)
    _number: int = 0

    @contextmanager
    def address(self, name: str, labels: Labels) -> Iterator[Address]:
        """A new pod's place, for the length of the block."""
        self._number += 1
        number = self._number
        found = Address(name, f"{self.router}-{number}", FIRST[:-1] + str(number + 1), labels)
        inside, router = f"ip -n {found.namespace}", f"ip -n {self.router}"
        _run(f"ip netns add {found.namespace}")
        try:
            _run(f"ip link add eth0 netns {found.namespace} type veth peer name pod{number} netns {self.router}")
            _run(f"{inside} link set lo up")
            _run(f"{inside} address add {found.ip}/32 dev eth0")
            _run(f"{inside} link set eth0 up")
            _run(f"{inside} route add {GATEWAY} dev eth0")
            _run(f"{inside} route add default via {GATEWAY} src {found.ip}")
            _run(f"{router} address add {GATEWAY}/32 dev pod{number}")
            _run(f"{router} link set pod{number} up")
            _run(f"{router} route add {found.ip} dev pod{number}")
            self.there.append(found)
            self._keep_policies()
            yield found
        finally:
            if found in self.there:
                self.there.remove(found)
                self._keep_policies()
            _run(f"ip netns delete {found.namespace}")  # and with it the link

    def _keep_policies(self) -> None:
        """Make the router pass what the policies allow, reset everything else and remember it."""
        rules = ["flush chain inet policies pass", "add rule inet policies pass ct state established,related accept"]
        for source in self.there:
            for target in self.there:
                ports = open_ports(self.policies, source.labels, target.labels) if source != target else set()
                pair = f"ip saddr {source.ip} ip daddr {target.ip}"
                if ports is None:
                    rules.append(f"add rule inet policies pass {pair} accept")
                elif ports:
                    listed = ", ".join(map(str, sorted(ports)))
                    rules.append(f"add rule inet policies pass {pair} tcp dport {{ {listed} }} accept")
        refused = "add @refused { ip saddr . ip daddr . tcp dport } reject with tcp reset"
        rules.append(f"add rule inet policies pass meta l4proto tcp {refused}")
        self._nft("\n".join(rules))

    def refused(self) -> set[tuple[str, str, int]]:
        """(from, to, port) of the connections that the policies have turned away since this was last asked."""
        found = self._nft("list set inet policies refused")
        self._nft("flush set inet policies refused")
        return {(a, b, int(port)) for a, b, port in re.findall(r"([\d.]+) \. ([\d.]+) \. (\d+)", found)}

    def _nft(self, script: str) -> str:
        command = ["ip", "netns", "exec", self.router, "nft", "--numeric", "--file", "-"]
        return subprocess.run(command, input=script, check=True, capture_output=True, text=True).stdout


@contextmanager
def network(policies: Sequence[Manifest]) -> Iterator[Network]:
    """A router that keeps `policies`, for the length of the block.

    Raises:
        InputError: this process may not make network namespaces.
    """
    router = f"scene-{os.getpid()}"
    try:
        _run(f"ip netns add {router}")
    except (subprocess.CalledProcessError, FileNotFoundError) as fault:
        raise InputError(
            "pods need network namespaces, which this user may not make: run it as root, with iproute2 installed"
        ) from fault
    try:
        made = Network(router, policies)
        _run(f"ip -n {router} link set lo up")
        _run(f"ip netns exec {router} sysctl --quiet --write net.ipv4.ip_forward=1")
        made._nft(
            "add table inet policies\n"
            "add set inet policies refused { type ipv4_addr . ipv4_addr . inet_service; flags dynamic; size 4096; }\n"
            "add chain inet policies pass { type filter hook forward priority 0; policy drop; }"
        )
        yield made
    finally:
        _run(f"ip netns delete {router}")


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True)
