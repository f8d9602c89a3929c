"""Where runs are recorded, apart from MLflow itself, which takes seconds to import."""

from __future__ import annotations

from dataclasses import dataclass

from vgan.config import option


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where metrics go."""

    uri: str = option("", "MLflow server or database; empty: MLFLOW_TRACKING_URI, else mlflow.db in this folder")
    experiment: str = option("", "MLflow experiment; empty: the job's own")
