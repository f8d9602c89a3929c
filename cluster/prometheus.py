"""What Prometheus is told: every metric of the project. Ray serves them, as `ray_NAME`, on each node's metrics port.

Each series belongs to one process, so queries add up rates. Ray collects every ten seconds: what a process counts in
its last seconds may be lost. A gauge is handed on only when it was set, and forgotten 20 s later: set it at every step.
"""

from __future__ import annotations

import functools

from ray.util.metrics import Counter, Gauge

from cluster import storage

COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {  # meaning, labels; each label has few values
    "scene_prepare_units_total": ("videos or segments committed", ("run", "outcome")),
    "scene_prepare_source_seconds_total": ("seconds of source video dealt with", ("run",)),
    "scene_prepare_clips_total": ("clips stored, before the gates", ("run",)),
    "scene_prepare_rejects_total": ("stretches of video rejected, and clips by the gates", ("run", "stage", "reason")),
    "scene_pack_clips_total": ("clips written into shards", ("run",)),
    "scene_train_clips_total": ("clips trained on, over all workers", ("run",)),
    "scene_train_wait_seconds_total": ("seconds that a worker waited for clips", ("run", "rank")),
}
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "scene_train_step": ("step that the run has reached", ("run",)),
    "scene_train_start_time_seconds": ("when the workers last started, since 1970", ("run",)),
}


def add(name: str, amount: float, **labels: str) -> None:
    """Add to a counter; nothing where there is nothing to add, which Ray refuses."""
    if amount > 0:
        _counter(name).inc(amount, labels)


def show(name: str, value: float, **labels: str) -> None:
    """Set a gauge."""
    _gauge(name).set(value, labels)


def run_of(url: str) -> str:
    """The run that work on a dataset counts for: the last part of its folder's url."""
    return storage.redact(url).rstrip("/").rpartition("/")[2]


@functools.cache
def _counter(name: str) -> Counter:
    meaning, labels = COUNTERS[name]
    return Counter(name, meaning, labels)


@functools.cache
def _gauge(name: str) -> Gauge:
    meaning, labels = GAUGES[name]
    return Gauge(name, meaning, labels)
