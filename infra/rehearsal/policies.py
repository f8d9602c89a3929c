"""Which pod may open a connection to which, by the NetworkPolicies of a namespace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Manifest = dict[str, Any]
Labels = dict[str, str]
HERE = "scene"  # the namespace that the policies are of
ANY_OTHER = 0  # stands for every port that no policy names


def matches(selector: Manifest, labels: Labels) -> bool:
    """Whether a label selector picks what bears `labels`."""
    exact = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    terms = selector.get("matchExpressions", [])
    assert all(term["operator"] == "In" for term in terms)
    return exact and all(labels.get(term["key"]) in term["values"] for term in terms)


def reaches(policies: Sequence[Manifest], source: Labels, target: Labels, port: int, *, namespace: str = HERE) -> bool:
    """Whether a pod with labels `source` may open a connection to `port` of one with labels `target`.

    Args:
        namespace: of the source; what leaves others is not ours to say.
    """
    specs = [m["spec"] for m in policies]
    out = [rule for spec in specs if matches(spec["podSelector"], source) for rule in spec.get("egress", [])]
    into = [rule for spec in specs if matches(spec["podSelector"], target) for rule in spec.get("ingress", [])]
    may_leave = namespace != HERE or _allows(out, "to", target, HERE, port)
    return may_leave and _allows(into, "from", source, namespace, port)


def open_ports(policies: Sequence[Manifest], source: Labels, target: Labels) -> set[int] | None:
    """The ports of `target` that `source` may call; None for every one."""
    if reaches(policies, source, target, ANY_OTHER):
        return None
    rules = [rule for m in policies for side in ("ingress", "egress") for rule in m["spec"].get(side, [])]
    named = {port["port"] for rule in rules for port in rule.get("ports", [])}
    return {port for port in named if reaches(policies, source, target, port)}


def _allows(rules: Sequence[Manifest], side: str, other: Labels, namespace: str, port: int) -> bool:
    def opens(rule: Manifest) -> bool:
        ports = [p["port"] for p in rule.get("ports", [])]
        open_to = side not in rule or any(_selects(peer, other, namespace) for peer in rule[side])
        return open_to and (not ports or port in ports)

    return any(opens(rule) for rule in rules)


def _selects(peer: Manifest, other: Labels, namespace: str) -> bool:
    """Whether a rule's peer is such a pod; one that names no namespace means the policy's own."""
    if "namespaceSelector" in peer:
        near = matches(peer["namespaceSelector"], {"kubernetes.io/metadata.name": namespace})
    else:
        near = namespace == HERE
    return "ipBlock" not in peer and near and matches(peer.get("podSelector", {}), other)
