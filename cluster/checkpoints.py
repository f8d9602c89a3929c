"""What a training run leaves on storage, and how to read it back.

    <out>/<name>/run.json                        settings that last and the MLflow key, written once (cluster/runs.py)
    <out>/<name>/checkpoint_manager_snapshot.json  Ray Train's list of complete checkpoints
    <out>/<name>/step_.../state.json             step, clips seen, lineage
                          weights/*.safetensors  generator, generator_ema, discriminator
                          generator/ discriminator/  DeepSpeed's own state, to resume this very run only (it is pickled)

Randomness needs no state: batches and noise are pure functions of the seed and the number of clips seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cluster import storage
from vgan import pretrained
from vgan.config import ModelConfig
from vgan.errors import BadInput
from vgan.pretrained import MODEL, STATE, WEIGHTS, Model

SNAPSHOT = "checkpoint_manager_snapshot.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on storage: its url and what state.json says."""

    url: str
    step: int
    clips_seen: int
    model: ModelConfig
    dataset_url: str
    dataset_digest: str
    mlflow_run_id: str


def write_state(folder: Path, state: dict[str, Any], networks: dict[str, nn.Module]) -> None:
    """Write state.json and weights/*.safetensors into a local folder."""
    pretrained.write_weights(folder / WEIGHTS, networks)
    (folder / STATE).write_bytes(storage.json_bytes(state))


def latest(run_url: str) -> str | None:
    """Url of a run's newest complete checkpoint; None before the first."""
    snapshot = storage.join(run_url, SNAPSHOT)
    if not storage.exists(snapshot):
        return None
    newest = storage.read_json(snapshot)["latest_checkpoint_result"]
    return storage.join(run_url, newest["checkpoint_dir_name"]) if newest else None


def open_checkpoint(url: str) -> Checkpoint:
    """The checkpoint at a url, which may also be a run's folder (its newest one).

    Raises:
        BadInput: nothing there, or nothing that this version can read.
    """
    if not storage.exists(storage.join(url, STATE)):
        newest = latest(url)
        if newest is None:
            raise BadInput(f"no checkpoint at {url!r}: give a run's folder (<out>/<name>) or one of its step_* folders")
        url = newest
    try:
        state = storage.read_json(storage.join(url, STATE))
        fields = {k: state[k] for k in ("step", "clips_seen", "dataset_url", "dataset_digest", "mlflow_run_id")}
    except (ValueError, KeyError, TypeError) as fault:
        raise BadInput(f"{STATE} at {url!r} does not describe a checkpoint: {fault}") from fault
    return Checkpoint(url=url, model=pretrained.make_config(state["model"], url), **fields)


def open_model(url: str, *, ema: bool = True) -> tuple[Model, Checkpoint | None]:
    """A ready model, and the checkpoint that it is of, unless it is an exported folder or a local .t7 file.

    Args:
        url: of a run's folder, a checkpoint, an exported folder or a .t7 file.
        ema: take the generator's moving average where there is one.

    Raises:
        BadInput: nothing there, or weights that do not fit the settings beside them.
    """
    if url.endswith(".t7"):
        if "://" in url:
            raise BadInput(f"{url!r}: .t7 files are read from local paths only, so copy it here first")
        return pretrained.load(url), None
    found = None if storage.exists(storage.join(url, MODEL)) else open_checkpoint(url)
    folder = found.url if found else url
    model = pretrained.open_model(lambda name: storage.read_bytes(storage.join(folder, name)), folder, ema=ema)
    return model, found


def load_weights(checkpoint: Checkpoint, name: str, network: nn.Module, prefix: str = "") -> None:
    """Copy weights into a network; only tensors are read, nothing is unpickled.

    Args:
        checkpoint: where from.
        name: generator, generator_ema or discriminator.
        network: where to; its state dict must equal the file's.
        prefix: take only the tensors below this name, e.g. "trunk.".

    Raises:
        BadInput: the file is missing or broken, or a tensor's name or shape differs.
    """
    path = storage.join(checkpoint.url, WEIGHTS, f"{name}.safetensors")
    try:
        data = storage.read_bytes(path)
    except FileNotFoundError as fault:
        raise BadInput(f"cannot read weights from {path!r}: {fault}") from fault
    tensors = pretrained.read_tensors(data, path)
    pretrained.fill(network, {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}, path)
