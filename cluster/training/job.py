"""Data exchanged between the driver and its training workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.dataset.manifest import Manifest
from cluster.observability.mlflow_tracker import Tracker
from cluster.storage.urls import join_url

if TYPE_CHECKING:
    from cluster.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class WorkerJob:
    """Job description that the driver sends to every worker."""

    config: TrainConfig
    manifest: Manifest
    tracker: Tracker
    run_id: str
    stop: Any  # actor handle of the StopSignal
    only: np.ndarray | None = None  # bool (clips,): clips to train on; None: all

    @property
    def run_url(self) -> str:
        """Folder of the run."""
        return join_url(self.config.out, self.config.name)


@dataclass(frozen=True, kw_only=True)
class WorkerResult:
    """Result of the workers, equal on all ranks."""

    step: int
    stopped: bool = False  # before the last step, at the driver's request
    failed: str = ""  # message for the user: the reason why a restart would fail again
