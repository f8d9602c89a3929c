"""What a training run leaves on storage, and how to read it back.

    <out>/<name>/run.json                      settings that last and the MLflow key (cluster/runtime/run_registry.py)
    <out>/<name>/step_.../state.json           step, clips seen, lineage
                          weights/*.safetensors    generator, generator_ema, discriminator; batch norm's buffers too
                          optimizer/*.safetensors  Adam's moments, a part a rank (cluster/training/engines.py)
                          files-0-of-2.json        what rank 0 of 2 wrote: size and SHA-256 of each file

Each rank puts its list last, and a checkpoint is there when all lists are: the last of them commits it. What a killed
run has half written has no complete set; what was damaged later differs from its hashes, and the checkpoint before it
is taken. This is also why Ray Train's own list of checkpoints is not used: it is rewritten in place, so that a kill
can leave half of it, and it knows no hashes.

Nothing in a checkpoint is pickled, and none of it depends on the number of workers. Randomness needs no state: batches
and noise are pure functions of the seed and the number of clips seen.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cluster.storage.files import (
    exists,
    find_files,
    get_file,
    json_bytes,
    list_files,
    put_file,
    read_bytes,
    read_json,
    remove_tree,
    write_json,
)
from cluster.storage.urls import filesystem, join_url
from vgan.errors import InputError
from vgan.models import pretrained
from vgan.models.config import ModelConfig
from vgan.models.pretrained import MODEL, STATE, WEIGHTS, Model

LIST = re.compile(r"files-(\d+)-of-(\d+)\.json")

log = logging.getLogger(__name__)


class CorruptCheckpointError(Exception):
    """A committed checkpoint whose files are not the ones that were written."""


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


def write_checkpoint_files(folder: Path, state: dict[str, Any], networks: dict[str, nn.Module]) -> None:
    """Write state.json and weights/*.safetensors into a local folder."""
    pretrained.write_weights(folder / WEIGHTS, networks)
    (folder / STATE).write_bytes(json_bytes(state))


# ---- a run's checkpoints -----------------------------------------------------------------------------------------


def checkpoint_dirname(step: int, attempt: str) -> str:
    """Folder of a checkpoint. `attempt` tells the workers' restarts apart: none writes into another's folder."""
    return f"step_{step:08d}_{attempt}"


def list_committed(run_url: str) -> list[str]:
    """Urls of a run's complete checkpoints, the newest first."""
    return [join_url(run_url, name) for name, complete in _folders(run_url) if complete]


def latest_checkpoint(run_url: str) -> str | None:
    """Url of a run's newest complete checkpoint; None before the first."""
    return next(iter(list_committed(run_url)), None)


def _folders(run_url: str) -> list[tuple[str, bool]]:
    """Names of all step_* folders and whether each is committed, the newest first."""
    lists: dict[str, set[tuple[int, int]]] = defaultdict(set)
    root = filesystem(run_url)[1].rstrip("/") + "/"
    for path in find_files(run_url) or {}:
        name, _, file = path.partition(root)[2].partition("/")
        if file and name.startswith("step_"):
            found = LIST.fullmatch(file)
            lists[name] |= {(int(found[1]), int(found[2]))} if found else set()
    return [(name, _complete(lists[name])) for name in sorted(lists, reverse=True)]


def _complete(lists: set[tuple[int, int]]) -> bool:
    return any({(rank, size) for rank in range(size)} <= lists for _, size in lists)


def upload_checkpoint(folder: Path, url: str, rank: int, world_size: int) -> None:
    """Put a rank's files at the checkpoint's url, and last the list that commits them."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        put_file(join_url(url, name), path)
    write_json(join_url(url, f"files-{rank}-of-{world_size}.json"), files)


def download_checkpoint(url: str, folder: Path) -> None:
    """Copy a committed checkpoint into a local folder and compare every file with its hash.

    Raises:
        Damaged: a file is missing or is not the one that was written; says which.
    """
    lists = [name for name in list_files(url, ".json") if LIST.fullmatch(name.rpartition("/")[2])]
    try:
        files = {name: entry for part in lists for name, entry in read_json(part).items()}
        hashes = {name: str(entry["sha256"]) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise CorruptCheckpointError(f"a list of its files cannot be read: {fault}") from fault
    for name, sha256 in hashes.items():
        local = folder / name
        try:
            get_file(join_url(url, name), local)
        except FileNotFoundError as fault:
            raise CorruptCheckpointError(f"{name} is missing") from fault
        if _sha256(local) != sha256:
            raise CorruptCheckpointError(f"{name} is not what was written")


def download_latest(run_url: str, folder: Path) -> str | None:
    """Copy the newest sound checkpoint of a run into a new local folder; its url, or None where none was committed.

    What is passed over on the way is said.

    Raises:
        InputError: there are checkpoints, and all of them are damaged.
    """
    damaged = []
    for name, complete in _folders(run_url):
        url = join_url(run_url, name)
        if not complete:
            log.warning("%s was not finished: passed over", url)
            continue
        try:
            download_checkpoint(url, folder / name)
        except CorruptCheckpointError as fault:
            log.warning("%s is DAMAGED (%s): taking the checkpoint before it", url, fault)
            damaged.append(f"{name}: {fault}")
            continue
        return url
    if damaged:
        raise InputError(f"every checkpoint in {run_url!r} is damaged ({'; '.join(damaged)}): choose another name=")
    return None


def best_checkpoint(run_url: str, metric: str) -> str | None:
    """Url of the committed checkpoint at which a metric was lowest, the newest of equals; None where none has it."""
    return _lowest(list_committed(run_url), metric)


def _lowest(urls: list[str], metric: str) -> str | None:
    """Of checkpoints, the newest first."""
    known = [(checkpoint_metrics(url).get(metric, math.nan), url) for url in urls]
    finite = [(value, url) for value, url in known if math.isfinite(value)]
    return min(finite, key=lambda pair: pair[0])[1] if finite else None


def checkpoint_metrics(url: str) -> dict[str, float]:
    """What was measured before a checkpoint; empty where it cannot be read."""
    try:
        found = read_json(join_url(url, STATE)).get("metrics", {})
        return {key: float(value) for key, value in found.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}


def prune_checkpoints(run_url: str, newest: int, best_by: str = "") -> None:
    """Remove all checkpoints but the `newest` committed ones, and what was begun before those.

    Args:
        best_by: metric whose lowest value keeps its checkpoint too.
    """
    folders = [(join_url(run_url, name), complete) for name, complete in _folders(run_url)]
    chosen = _lowest([url for url, complete in folders if complete], best_by) if best_by else None
    kept = 0
    for url, complete in folders:
        if kept < newest or url == chosen:
            kept += complete
            continue
        for path in list_files(url, ".json"):  # its lists first: half removed, it is not taken for whole
            remove_tree(path)
        remove_tree(url)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- one checkpoint ----------------------------------------------------------------------------------------------


def open_checkpoint(url: str) -> Checkpoint:
    """The checkpoint at a url, which may also be a run's folder (its newest one).

    Raises:
        InputError: nothing there, or nothing that this version can read.
    """
    if not exists(join_url(url, STATE)):
        newest = latest_checkpoint(url)
        if newest is None:
            raise InputError(
                f"no checkpoint at {url!r}: give a run's folder (<out>/<name>) or one of its step_* folders"
            )
        url = newest
    try:
        state = read_json(join_url(url, STATE))
        fields = {k: state[k] for k in ("step", "clips_seen", "dataset_url", "dataset_digest", "mlflow_run_id")}
    except (ValueError, KeyError, TypeError) as fault:
        raise InputError(f"{STATE} at {url!r} does not describe a checkpoint: {fault}") from fault
    return Checkpoint(url=url, model=pretrained.model_config_from(state["model"], url), **fields)


def open_model(url: str, *, ema: bool = True) -> tuple[Model, Checkpoint | None]:
    """A ready model, and the checkpoint that it is of, unless it is an exported folder or a local .t7 file.

    Args:
        url: of a run's folder, a checkpoint, an exported folder or a .t7 file.
        ema: take the generator's moving average where there is one.

    Raises:
        InputError: nothing there, or weights that do not fit the settings beside them.
    """
    if url.endswith(".t7"):
        if "://" in url:
            raise InputError(f"{url!r}: .t7 files are read from local paths only, so copy it here first")
        return pretrained.load(url), None
    found = None if exists(join_url(url, MODEL)) else open_checkpoint(url)
    folder = found.url if found else url
    model = pretrained.load_model_from(lambda name: read_bytes(join_url(folder, name)), folder, ema=ema)
    return model, found


def load_weights(checkpoint: Checkpoint, name: str, network: nn.Module) -> None:
    """Copy weights into a network; only tensors are read, nothing is unpickled.

    Args:
        checkpoint: where from.
        name: generator, generator_ema or discriminator.
        network: where to; its state dict must equal the file's.

    Raises:
        InputError: the file is missing or broken, or a tensor's name or shape differs.
    """
    path = join_url(checkpoint.url, WEIGHTS, f"{name}.safetensors")
    try:
        data = read_bytes(path)
    except FileNotFoundError as fault:
        raise InputError(f"cannot read weights from {path!r}: {fault}") from fault
    pretrained.load_into(network, pretrained.read_tensors(data, path), path)
