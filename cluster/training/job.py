"""What the driver gives every worker, and what it gets back."""

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
    """What the driver gives every worker."""

    config: TrainConfig
    manifest: Manifest
    tracker: Tracker
    run_id: str
    stop: Any  # handle of the StopSignal
    only: np.ndarray | None = None  # bool (clips,): the clips to train on, None for all

    @property
    def run_url(self) -> str:
        return join_url(self.config.out, self.config.name)


@dataclass(frozen=True, kw_only=True)
class WorkerResult:
    """How the workers ended, all of them alike."""

    step: int
    stopped: bool = False  # before the last step, because the driver asked for it
    failed: str = ""  # why it would be no use to try again, for a person
