"""MLflow, and nothing else knows it. Runs are found again by name, so a restarted job continues its run."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing leaves the machine unasked
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # the first use of a database prints its migrations
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # the default keeps silent for minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
logging.getLogger("alembic").setLevel(logging.WARNING)

import mlflow
import psutil
import torch
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.utils.time import get_current_time_millis
from sqlalchemy.exc import SQLAlchemyError

from cluster import storage
from cluster.tracking_config import TrackingConfig as TrackingConfig
from vgan.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

RUN_KEY = "run_key"  # tag that names a run across restarts
FAULTS = (mlflow.MlflowException, SQLAlchemyError, OSError)  # of a server, a database, a network
RETRY_S = 5.0
MAX_ENTRIES = 500  # kept while a server is away
MAX_POINTS = 500  # of metrics in an entry: 8,000 lines of 30 metrics in all, 80 MB; a server takes 1,000 at once

log = logging.getLogger(__name__)


class Tracker:
    """One MLflow server or database and one experiment in it. Cheap to pickle: workers make their own client."""

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{storage.absolute('mlflow.db')}"
        self.experiment = experiment
        self._client: mlflow.MlflowClient | None = None
        self._experiment_id = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return Tracker, (self.uri, self.experiment)

    @property
    def client(self) -> mlflow.MlflowClient:
        if self._client is None:
            self._client = mlflow.MlflowClient(tracking_uri=self.uri)
        return self._client

    def experiment_id(self) -> str:
        """The experiment, made if it is new; a local database keeps its artifacts beside itself.

        Raises:
            BadInput: the tracking server does not answer or refuses.
        """
        if not self._experiment_id:  # asked for several times a run, and it does not change
            self._experiment_id = self._find_experiment()
        return self._experiment_id

    def _find_experiment(self) -> str:
        try:
            found = self.client.get_experiment_by_name(self.experiment)
            if found is not None:
                return found.experiment_id
            folder = None
            if self.uri.startswith("sqlite:///"):
                folder = (Path(self.uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()
            kind = {"mlflow.experimentKind": "custom_model_development"}  # else the UI opens on its chat tools
            return self.client.create_experiment(self.experiment, artifact_location=folder, tags=kind)
        except FAULTS as fault:
            raise BadInput(f"MLflow at tracking.uri={storage.redact(self.uri)!r} cannot be used: {fault}") from fault

    def start(
        self, key: str, *, name: str, params: Mapping[str, Any], tags: Mapping[str, str], parent: str = ""
    ) -> Run:
        """Continue the run that carries `key`, or start it.

        Args:
            key: what names the run across restarts, unique in the experiment; without quotes.
            name: what a person reads.
            params: settings, logged once; a continued run keeps those it has.
            tags: lineage and labels.
            parent: id of the run this one belongs to.
        """
        experiment = self.experiment_id()
        found = self._find(key)
        if found:
            run_id = found.info.run_id
            self.client.update_run(run_id, status="RUNNING")
        else:
            links = {"mlflow.parentRunId": parent} if parent else {}
            created = self.client.create_run(experiment, run_name=name, tags={RUN_KEY: key, **tags, **links})
            run_id = created.info.run_id
            self.client.log_batch(run_id, params=[Param(k, str(v)[:6000]) for k, v in params.items()])
        return Run(self, run_id)

    def newest(self, *, kind: str, name: str) -> Run | None:
        """The run of this kind and name that was started last, if there is one. Names hold no quotes."""
        query = f"tags.kind = '{kind}' and tags.`mlflow.runName` = '{name}'"
        found = self.client.search_runs([self.experiment_id()], query, max_results=1)
        return Run(self, found[0].info.run_id) if found else None

    def children(self, parent: str) -> list[tuple[str, dict[str, str]]]:
        """Id and tags of each finished run that belongs to another."""
        query, found, token = f"tags.`mlflow.parentRunId` = '{parent}' and attributes.status = 'FINISHED'", [], None
        while True:
            page = self.client.search_runs([self.experiment_id()], query, max_results=1000, page_token=token)
            found += [(run.info.run_id, dict(run.data.tags)) for run in page]
            token = page.token
            if not token:
                return found

    def read_text(self, run_id: str, path: str) -> str:
        """A text that a run has logged."""
        with tempfile.TemporaryDirectory(prefix="artifact-") as scratch:
            return Path(self.client.download_artifacts(run_id, path, scratch)).read_text(encoding="utf-8")

    def finished(self, key: str) -> bool:
        """Whether the run that carries `key` has ended well."""
        found = self._find(key)
        return found is not None and found.info.status == "FINISHED"

    def _find(self, key: str) -> mlflow.entities.Run | None:
        found = self.client.search_runs([self.experiment_id()], f"tags.{RUN_KEY} = '{key}'", max_results=1)
        return found[0] if found else None


class Run:
    """One MLflow run."""

    def __init__(self, tracker: Tracker, run_id: str) -> None:
        self.tracker = tracker
        self.id = run_id

    @property
    def client(self) -> mlflow.MlflowClient:
        return self.tracker.client

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log scalars at a step."""
        self.points(points(values, step))

    def points(self, found: Sequence[Metric]) -> None:
        """Log scalars, each with its step and time."""
        for start in range(0, len(found), 1000):  # the most that a server takes at once
            self.client.log_batch(self.id, metrics=found[start : start + 1000])

    def curve(self, name: str, values: Sequence[float]) -> None:
        """Log a series whose steps count from 1."""
        now = get_current_time_millis()
        self.points([Metric(name, float(v), now, step) for step, v in enumerate(values, start=1)])

    def tag(self, **tags: str) -> None:
        for name, value in tags.items():
            self.client.set_tag(self.id, name, value)

    def dataset(self, *, name: str, digest: str, url: str, context: str) -> None:
        """Log a dataset as the run's input. MLflow cuts digests at 36 characters; the tag `dataset_hash` holds all."""
        source = json.dumps({"uri": url})
        entity = Dataset(name=name, digest=digest[:36], source_type="uri", source=source)
        tags = [InputTag("mlflow.data.context", context), InputTag("dataset_hash", digest)]
        self.client.log_inputs(self.id, [DatasetInput(entity, tags)])

    def image(self, pixels: np.ndarray, key: str, step: int) -> None:
        """Log an image uint8 (H, W, 3) that the UI shows as a series over steps."""
        self.client.log_image(self.id, pixels, key=key, step=step)

    def figure(self, figure: Figure, path: str) -> None:
        self.client.log_figure(self.id, figure, path)

    def text(self, text: str, path: str) -> None:
        self.client.log_text(self.id, text, path)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """End the run with the block: FINISHED, KILLED where a person stopped it, else FAILED."""
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
        """End the run: FINISHED, FAILED or KILLED. A server that is away is said: what was computed stands."""
        try:
            self.client.set_terminated(self.id, status)
        except FAULTS as fault:
            log.warning("MLflow was not told that the run has ended as %s: %s", status, first_line(fault))


class Outbox:
    """Sends what a run logs from a thread of its own, in order, so that nobody waits for the server.

    While it does not answer, entries are kept and tried again; that is said once, and so is its return. What it refuses
    is dropped, and said.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._entries: deque[Callable[[], None]] = deque(maxlen=MAX_ENTRIES)
        self._changed = threading.Condition()  # may be entered again by the thread that is in it
        self._open: partial[None] | None = None  # the entry that takes metrics in, as long as it is not the first
        self._full = self._closing = False
        self._thread = threading.Thread(target=self._send_all, daemon=True)
        self._thread.start()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        found = points(values, step)
        with self._changed:
            if (
                self._open is None
                or self._open is self._entries[0]
                or len(self._open.args[0]) + len(found) > MAX_POINTS
            ):
                self._open = partial(self.run.points, [])
                self._put(self._open)
            self._open.args[0].extend(found)

    def image(self, pixels: np.ndarray, key: str, step: int) -> None:
        self._put(partial(self.run.image, pixels, key, step))

    def tag(self, **tags: str) -> None:
        self._put(partial(self.run.tag, **tags))

    def close(self, patience_s: float = 30.0) -> None:
        """Send what is left. It is given up, and said, when the server has taken nothing for so long."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        left = MAX_ENTRIES + 1
        while self._thread.is_alive() and len(self._entries) < left:
            left = len(self._entries)
            self._thread.join(patience_s)
        if self._entries:
            log.warning("MLflow still does not answer: %d entries of the run are lost", len(self._entries))

    def _put(self, entry: Callable[[], None]) -> None:
        with self._changed:
            if len(self._entries) == MAX_ENTRIES and not self._full:
                log.warning("MLflow has not answered for long: the oldest entries of the run are lost")
            self._full = len(self._entries) == MAX_ENTRIES
            if self._full:
                self._take_first()
            self._entries.append(entry)
            self._changed.notify_all()

    def _take_first(self) -> None:
        if self._entries.popleft() is self._open:
            self._open = None

    def _send_all(self) -> None:
        away = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._entries or self._closing)
                if not self._entries:
                    return
                entry = self._entries[0]
            try:
                entry()
            except FAULTS as fault:
                if not _refused(fault):
                    if not away:
                        log.warning("MLflow does not answer: going on, and keeping its entries (%s)", first_line(fault))
                    away = True
                    time.sleep(RETRY_S)
                    continue
                log.warning("MLflow refuses an entry: %s", first_line(fault))
            with self._changed:
                if self._entries and self._entries[0] is entry:  # a full box has dropped it meanwhile
                    self._take_first()
            if away:
                log.warning("MLflow answers again: sending what was kept")
            away = False


def points(values: Mapping[str, float], step: int) -> list[Metric]:
    """Scalars as found now."""
    now = get_current_time_millis()
    return [Metric(key, float(value), now, step) for key, value in values.items()]


def _refused(fault: Exception) -> bool:
    """Whether the server has answered, and would say the same again."""
    return isinstance(fault, mlflow.MlflowException) and 400 <= fault.get_http_status_code() < 500


def first_line(fault: Exception) -> str:
    return (str(fault).splitlines() or [type(fault).__name__])[0][:200]


def system_metrics() -> dict[str, float]:
    """What this process and its machine use now: GB, and percent since the last call."""
    found = {
        "system/cpu_percent": psutil.cpu_percent(),
        "system/memory_percent": psutil.virtual_memory().percent,
        "system/process_memory_gb": psutil.Process().memory_info().rss / 1e9,
    }
    if torch.cuda.is_initialized():
        found["system/gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def environment() -> str:
    """Every installed package and its version, a line each, as pip writes them."""
    found = {f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions()}
    return "".join(f"{line}\n" for line in sorted(found, key=str.lower))
