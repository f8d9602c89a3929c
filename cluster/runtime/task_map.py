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
    """Run `work(shared, *part)` as one Ray task per part and yield the results in order."""
    task, shared_ref = (
        ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=2, label_selector=train_labels())(work),
        ray.put(shared),
    )
    pending = deque(task.remote(shared_ref, *part) for part in parts)
    while pending:
        yield ray.get(pending.popleft())
