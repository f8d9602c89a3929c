"""Ordered results of many Ray tasks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from cluster.runtime.placement import train_labels


def map_tasks(
    work: Callable[..., Any], parts: Sequence[tuple[Any, ...]], shared: Any, *, cpus: float, gpus: float
) -> Iterator[Any]:
    """The results of `work(shared, *part)`, a task each, in order."""
    task, place = (
        ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=2, label_selector=train_labels())(work),
        ray.put(shared),
    )
    waiting = deque(task.remote(place, *part) for part in parts)
    while waiting:
        yield ray.get(waiting.popleft())
