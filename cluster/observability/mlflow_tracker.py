"""Experiment tracking with MLflow, the only module that uses it.

Runs carry a key as a tag, so that a restarted job continues its run.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # send no usage data
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # the first use of a database prints its migrations
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # the default blocks silently for minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
logging.getLogger("alembic").setLevel(logging.WARNING)

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.utils.time import get_current_time_millis
from sqlalchemy.exc import SQLAlchemyError

from cluster.observability.tracking_config import TrackingConfig as TrackingConfig
from cluster.storage.urls import absolute_url, redact
from vgan.errors import InputError, first_line

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

RUN_KEY = "run_key"  # tag that identifies a run across restarts
TRACKING_EXCEPTIONS = (mlflow.MlflowException, SQLAlchemyError, OSError)  # of a server, a database, a network


class Tracker:
    """An experiment on an MLflow server or database. Cheap to pickle: each worker creates its own client.

    Args:
        uri: MLflow server or database; empty: MLFLOW_TRACKING_URI, else mlflow.db in the working folder.
        experiment: Name of the experiment.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{absolute_url('mlflow.db')}"
        self.experiment = experiment
        self._client: mlflow.MlflowClient | None = None
        self._experiment_id = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return Tracker, (self.uri, self.experiment)

    @property
    def client(self) -> mlflow.MlflowClient:
        """MLflow client of this process, created on first use."""
        if self._client is None:
            self._client = mlflow.MlflowClient(tracking_uri=self.uri)
        return self._client

    def experiment_id(self) -> str:
        """Return the experiment's id, creating the experiment if it is new.

        Raises:
            InputError: The tracking server does not answer, or it refuses the request.
        """
        if not self._experiment_id:  # cached: requested several times per run, and constant
            self._experiment_id = self._find_experiment()
        return self._experiment_id

    def _find_experiment(self) -> str:
        """Find or create the experiment; with a local database, its artifacts go into a folder beside the database."""
        try:
            experiment = self.client.get_experiment_by_name(self.experiment)
            if experiment is not None:
                return experiment.experiment_id
            folder = None
            if self.uri.startswith("sqlite:///"):
                folder = (Path(self.uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()
            # Without this tag the UI opens the experiment in its views for LLM chats.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            return self.client.create_experiment(self.experiment, artifact_location=folder, tags=tags)
        except TRACKING_EXCEPTIONS as error:
            raise InputError(f"cannot use MLflow at tracking.uri={redact(self.uri)!r}: {error}") from error

    def start(
        self, key: str, *, name: str, params: Mapping[str, Any], tags: Mapping[str, str], parent: str = ""
    ) -> Run:
        """Continue the run with the tag `key`, or create it.

        Args:
            key: Identifier of the run across restarts, unique in the experiment; without quotes.
            name: Displayed name.
            params: Settings, logged once; a continued run keeps its own.
            tags: Lineage and labels of a new run.
            parent: Id of the parent run; empty: none.
        """
        experiment_id = self.experiment_id()
        existing = self._find(key)
        if existing:
            run_id = existing.info.run_id
            self.client.update_run(run_id, status="RUNNING")
        else:
            links = {"mlflow.parentRunId": parent} if parent else {}
            created = self.client.create_run(experiment_id, run_name=name, tags={RUN_KEY: key, **tags, **links})
            run_id = created.info.run_id
            self.client.log_batch(run_id, params=[Param(k, str(v)[:6000]) for k, v in params.items()])
        return Run(self, run_id)

    def latest_run(self, *, kind: str, name: str) -> Run | None:
        """Return the latest run with the tag `kind` and this name, or None. Both must be free of quotes."""
        query = f"tags.kind = '{kind}' and tags.`mlflow.runName` = '{name}'"
        runs = self.client.search_runs([self.experiment_id()], query, max_results=1)
        return Run(self, runs[0].info.run_id) if runs else None

    def children(self, parent: str) -> list[tuple[str, dict[str, str]]]:
        """List id and tags of each finished child run of the run with id `parent`."""
        query, children, token = f"tags.`mlflow.parentRunId` = '{parent}' and attributes.status = 'FINISHED'", [], None
        while True:
            page = self.client.search_runs([self.experiment_id()], query, max_results=1000, page_token=token)
            children += [(run.info.run_id, dict(run.data.tags)) for run in page]
            token = page.token
            if not token:
                return children

    def read_text(self, run_id: str, path: str) -> str:
        """Read a text artifact of a run."""
        with tempfile.TemporaryDirectory(prefix="artifact-") as scratch:
            return Path(self.client.download_artifacts(run_id, path, scratch)).read_text(encoding="utf-8")

    def is_finished(self, key: str) -> bool:
        """Return True if the run with the tag `key` exists and has the status FINISHED."""
        run = self._find(key)
        return run is not None and run.info.status == "FINISHED"

    def _find(self, key: str) -> mlflow.entities.Run | None:
        """Return the run with the tag `key`, or None."""
        runs = self.client.search_runs([self.experiment_id()], f"tags.{RUN_KEY} = '{key}'", max_results=1)
        return runs[0] if runs else None


class Run:
    """An MLflow run.

    Args:
        tracker: The run's server and experiment.
        run_id: MLflow's id of the run.
    """

    def __init__(self, tracker: Tracker, run_id: str) -> None:
        self.tracker = tracker
        self.id = run_id

    @property
    def client(self) -> mlflow.MlflowClient:
        """MLflow client of this process."""
        return self.tracker.client

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log scalars of one step, by metric name."""
        self.points(metric_points(values, step))

    def points(self, found: Sequence[Metric]) -> None:
        """Log metric values, each with its own step and time."""
        for start in range(0, len(found), 1000):  # a server accepts at most 1,000 per request
            self.client.log_batch(self.id, metrics=found[start : start + 1000])

    def log_series(self, name: str, values: Sequence[float]) -> None:
        """Log a series of scalars as one metric with steps 1, 2, ..."""
        now = get_current_time_millis()
        self.points([Metric(name, float(v), now, step) for step, v in enumerate(values, start=1)])

    def set_tags(self, **tags: str) -> None:
        """Set tags of the run."""
        for name, value in tags.items():
            self.client.set_tag(self.id, name, value)

    def dataset(self, *, name: str, digest: str, url: str, context: str) -> None:
        """Log a dataset as an input of the run.

        Args:
            name: Name of the dataset.
            digest: Digest of its content. MLflow stores 36 characters at most; the tag `dataset_hash` holds all.
            url: URI of the dataset, such as its folder.
            context: The dataset's use in the run, such as "training".
        """
        source = json.dumps({"uri": url})
        entity = Dataset(name=name, digest=digest[:36], source_type="uri", source=source)
        tags = [InputTag("mlflow.data.context", context), InputTag("dataset_hash", digest)]
        self.client.log_inputs(self.id, [DatasetInput(entity, tags)])

    def image(self, pixels: np.ndarray, key: str, step: int) -> None:
        """Log an RGB image (H, W, 3), uint8, of a step; the UI shows all images of a key as a series."""
        self.client.log_image(self.id, pixels, key=key, step=step)

    def figure(self, figure: Figure, path: str) -> None:
        """Log a matplotlib figure as an artifact."""
        self.client.log_figure(self.id, figure, path)

    def text(self, text: str, path: str) -> None:
        """Log a text as an artifact."""
        self.client.log_text(self.id, text, path)

    @contextmanager
    def run_context(self) -> Iterator[None]:
        """End the run with the block: KILLED after KeyboardInterrupt, FAILED after another exception, else FINISHED."""
        status = "FAILED"
        try:
            yield
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            self.finish(status)

    def finish(self, status: str = "FINISHED") -> None:
        """Set the run's final status: FINISHED, FAILED or KILLED.

        Logs a warning instead of raising if the server cannot be reached: the job's results are complete.
        """
        try:
            self.client.set_terminated(self.id, status)
        except TRACKING_EXCEPTIONS as error:
            log.warning("MLflow did not record the status %s of the ended run: %s", status, first_line(error))


def metric_points(values: Mapping[str, float], step: int) -> list[Metric]:
    """Convert scalars of one step to MLflow metrics with the present time."""
    now = get_current_time_millis()
    return [Metric(key, float(value), now, step) for key, value in values.items()]


def is_refusal(error: Exception) -> bool:
    """Return True for an answer of the server (HTTP 4xx) that a retry would not change."""
    return isinstance(error, mlflow.MlflowException) and 400 <= error.get_http_status_code() < 500
