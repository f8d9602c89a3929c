"""Configuration of experiment tracking, in a module without MLflow, which takes seconds to import."""

from __future__ import annotations

from dataclasses import dataclass

from vgan.options import option


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """MLflow server and experiment of a run."""

    uri: str = option(
        "", "URI of the MLflow server or database; empty: MLFLOW_TRACKING_URI, else mlflow.db in this folder"
    )
    experiment: str = option("", "name of the MLflow experiment; empty: the job's default")
