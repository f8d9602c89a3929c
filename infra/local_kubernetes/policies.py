"""Evaluation of a namespace's NetworkPolicies: which pod may connect to which port of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Manifest = dict[str, Any]
Labels = dict[str, str]
NAMESPACE = "scene"  # of the policies
ANY_PORT = 0  # represents every port that no policy names


def matches(selector: Manifest, labels: Labels) -> bool:
    """Evaluate a label selector (matchLabels, and matchExpressions with the operator In) for `labels`."""
    exact = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    terms = selector.get("matchExpressions", [])
    assert all(term["operator"] == "In" for term in terms)
    return exact and all(labels.get(term["key"]) in term["values"] for term in terms)


def is_reachable(
    policies: Sequence[Manifest], source: Labels, target: Labels, port: int, *, namespace: str = NAMESPACE
) -> bool:
    """Return True if a pod with labels `source` may connect to `port` of a pod with labels `target`.

    Args:
        policies: NetworkPolicies of the target's namespace.
        source: Labels of the connecting pod.
        target: Labels of the pod connected to.
        port: Number of a TCP port.
        namespace: Namespace of the source; the egress of other namespaces is not restricted by these policies.
    """
    specs = [m["spec"] for m in policies]
    egress = [rule for spec in specs if matches(spec["podSelector"], source) for rule in spec.get("egress", [])]
    ingress = [rule for spec in specs if matches(spec["podSelector"], target) for rule in spec.get("ingress", [])]
    may_leave = namespace != NAMESPACE or _allows(egress, "to", target, NAMESPACE, port)
    return may_leave and _allows(ingress, "from", source, namespace, port)


def open_ports(policies: Sequence[Manifest], source: Labels, target: Labels) -> set[int] | None:
    """Return the ports of `target` that `source` may connect to; None if all."""
    if is_reachable(policies, source, target, ANY_PORT):
        return None
    rules = [rule for m in policies for side in ("ingress", "egress") for rule in m["spec"].get(side, [])]
    named = {port["port"] for rule in rules for port in rule.get("ports", [])}
    return {port for port in named if is_reachable(policies, source, target, port)}


def _allows(rules: Sequence[Manifest], side: str, peer: Labels, namespace: str, port: int) -> bool:
    """Return True if one of the rules allows a peer pod and a port; `side` is "from" or "to"."""

    def allows(rule: Manifest) -> bool:
        ports = [p["port"] for p in rule.get("ports", [])]
        peer_matches = side not in rule or any(_selects(selector, peer, namespace) for selector in rule[side])
        return peer_matches and (not ports or port in ports)

    return any(allows(rule) for rule in rules)


def _selects(selector: Manifest, peer: Labels, namespace: str) -> bool:
    """Match a rule's peer with a pod; a peer without a namespace selector means the policy's namespace."""
    if "namespaceSelector" in selector:
        same_namespace = matches(selector["namespaceSelector"], {"kubernetes.io/metadata.name": namespace})
    else:
        same_namespace = namespace == NAMESPACE
    return "ipBlock" not in selector and same_namespace and matches(selector.get("podSelector", {}), peer)
