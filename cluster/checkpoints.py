"""What a training run leaves on storage, and how to read it back.

    <out>/<name>/run.json                        settings that last and the MLflow key, written once (cluster/runs.py)
    <out>/<name>/checkpoint_manager_snapshot.json  Ray Train's list of complete checkpoints
    <out>/<name>/step_.../state.json             step, clips seen, lineage
                          weights/*.safetensors  generator, generator_ema, discriminator
                          G/ D/                  DeepSpeed's own state, for resuming this very run only (it is pickled)

Randomness needs no state: batches and noise are pure functions of the seed and the number of clips seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from cluster import storage
from vgan.config import ModelConfig
from vgan.errors import BadInput

STATE, SNAPSHOT = "state.json", "checkpoint_manager_snapshot.json"


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
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    for name, network in networks.items():
        tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
        safetensors.torch.save_file(tensors, str(folder / "weights" / f"{name}.safetensors"))
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
        BadInput: nothing there.
    """
    if not storage.exists(storage.join(url, STATE)):
        newest = latest(url)
        if newest is None:
            raise BadInput(f"no checkpoint at {url!r}: give a run's folder (<out>/<name>) or one of its step_* folders")
        url = newest
    state = storage.read_json(storage.join(url, STATE))
    fields = {k: state[k] for k in ("step", "clips_seen", "dataset_url", "dataset_digest", "mlflow_run_id")}
    return Checkpoint(url=url, model=ModelConfig(**state["model"]), **fields)


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
    path = storage.join(checkpoint.url, "weights", f"{name}.safetensors")
    try:
        tensors = safetensors.torch.load(storage.read_bytes(path))
    except (FileNotFoundError, safetensors.SafetensorError) as fault:
        raise BadInput(f"cannot read weights from {path!r}: {fault}") from fault
    tensors = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    wanted = {k: v.shape for k, v in network.state_dict().items()}
    found = {k: v.shape for k, v in tensors.items()}
    if wanted != found:
        odd = next(k for k in sorted(wanted.keys() | found.keys()) if wanted.get(k) != found.get(k))
        raise BadInput(
            f"{path!r} does not fit the network: "
            f"{odd} is {_shape(found.get(odd))} in the file, {_shape(wanted.get(odd))} here"
        )
    network.load_state_dict(tensors)


def _shape(shape: torch.Size | None) -> str:
    return "missing" if shape is None else "x".join(map(str, shape)) or "a scalar"
