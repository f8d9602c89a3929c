"""Load of this machine, and the packages installed on it."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

import psutil
import torch

from cluster.observability.tracking_config import TrackingConfig as TrackingConfig

if TYPE_CHECKING:
    pass


def system_metrics() -> dict[str, float]:
    """Measure resource usage: GB (10^9 bytes) now, CPU percent since the last call.

    Memory of this process, CPU and memory percent of its machine; on a GPU, the peak of its allocated memory.
    """
    usage = {
        "system/cpu_percent": psutil.cpu_percent(),
        "system/memory_percent": psutil.virtual_memory().percent,
        "system/process_memory_gb": psutil.Process().memory_info().rss / 1e9,
    }
    if torch.cuda.is_initialized():
        usage["system/gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return usage


def installed_packages() -> str:
    """List installed packages and versions, one per line, in the format of `pip freeze`."""
    packages = {f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions()}
    return "".join(f"{line}\n" for line in sorted(packages, key=str.lower))
