"""Prometheus metrics of the project, exported by Ray as `ray_NAME` on each node's metrics port.

Each series belongs to one process, so queries sum rates. Ray collects every ten seconds: counts of a process's last
seconds may be lost. A gauge is exported only after it was set and expires after 20 s: set it at every step.
"""

from __future__ import annotations

import functools

from ray.util.metrics import Counter, Gauge

from cluster.storage.urls import redact

COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {  # description, labels; each label has few values
    "scene_prepare_units_total": ("videos or segments committed", ("run", "outcome")),
    "scene_prepare_source_seconds_total": ("seconds of source video processed", ("run",)),
    "scene_prepare_clips_total": ("clips stored, before filtering", ("run",)),
    "scene_prepare_rejects_total": (
        "segments of video rejected, and clips rejected by the filters",
        ("run", "stage", "reason"),
    ),
    "scene_pack_clips_total": ("clips written into shards", ("run",)),
    "scene_train_clips_total": ("training clips processed by all workers", ("run",)),
    "scene_train_wait_seconds_total": ("seconds that a worker waited for clips", ("run", "rank")),
}
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "scene_train_step": ("latest training step of the run", ("run",)),
    "scene_train_start_time_seconds": ("Unix time of the latest start of the workers", ("run",)),
}


def increment(name: str, amount: float, **labels: str) -> None:
    """Increment a counter; amounts of 0, which Ray refuses, are ignored."""
    if amount > 0:
        _counter(name).inc(amount, labels)


def set_gauge(name: str, value: float, **labels: str) -> None:
    """Set a gauge."""
    _gauge(name).set(value, labels)


def run_label(url: str) -> str:
    """Return the value of the label `run` for work on a dataset: the last component of its folder's URL."""
    return redact(url).rstrip("/").rpartition("/")[2]


@functools.cache
def _counter(name: str) -> Counter:
    """Return this process's counter of a name in COUNTERS, creating it on first use."""
    description, labels = COUNTERS[name]
    return Counter(name, description, labels)


@functools.cache
def _gauge(name: str) -> Gauge:
    """Return this process's gauge of a name in GAUGES, creating it on first use."""
    description, labels = GAUGES[name]
    return Gauge(name, description, labels)
