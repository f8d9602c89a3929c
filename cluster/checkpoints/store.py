"""Checkpoints of training runs on storage: format, upload, verified download, pruning.

    <out>/<name>/run.json                      fixed settings and the MLflow key (cluster/runtime/run_registry.py)
    <out>/<name>/step_.../state.json           step, clips seen, lineage
                          weights/*.safetensors    generator, generator_ema, discriminator; with batch-norm buffers
                          optimizer/*.safetensors  Adam's moments, one part per rank (cluster/training/engines.py)
                          files-0-of-2.json        files written by rank 0 of 2: size and SHA-256 of each

Each rank uploads its file list last, and the last list of the set commits the checkpoint. A checkpoint that was being
written when its run was killed has no complete set. One that was damaged later differs from its hashes; the one before
it is then used. Ray Train's own list of checkpoints is not used for the same reasons: it is rewritten in place, so that
a kill can leave half of it, and it holds no hashes.

Checkpoints contain no pickles and can be resumed with any number of workers. They hold no random state: batches and
noise are pure functions of the seed and the number of clips seen.
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
    """Error: a file of a committed checkpoint is missing or differs from its hash."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on storage: its url and the contents of its state.json."""

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


# ---- checkpoints of a run ----------------------------------------------------------------------------------------


def checkpoint_dirname(step: int, attempt: str) -> str:
    """Return the folder name of a checkpoint; `attempt` is new at each start of the workers: no folder is reused."""
    return f"step_{step:08d}_{attempt}"


def list_committed(run_url: str) -> list[str]:
    """List the urls of a run's committed checkpoints, newest first."""
    return [join_url(run_url, name) for name, complete in _list_folders(run_url) if complete]


def latest_checkpoint(run_url: str) -> str | None:
    """Return the url of a run's newest committed checkpoint, or None if there is none."""
    return next(iter(list_committed(run_url)), None)


def _list_folders(run_url: str) -> list[tuple[str, bool]]:
    """List (name, is committed) of all step_* folders, newest first."""
    lists: dict[str, set[tuple[int, int]]] = defaultdict(set)
    root = filesystem(run_url)[1].rstrip("/") + "/"
    for path in find_files(run_url) or {}:
        name, _, file = path.partition(root)[2].partition("/")
        if file and name.startswith("step_"):
            match = LIST.fullmatch(file)
            lists[name] |= {(int(match[1]), int(match[2]))} if match else set()
    return [(name, _is_complete(lists[name])) for name in sorted(lists, reverse=True)]


def _is_complete(lists: set[tuple[int, int]]) -> bool:
    """Test for the lists of all ranks among pairs (rank, world size)."""
    return any({(rank, size) for rank in range(size)} <= lists for _, size in lists)


def upload_checkpoint(folder: Path, url: str, rank: int, world_size: int) -> None:
    """Upload the files of one rank to a checkpoint's url, and last the list that commits them."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        put_file(join_url(url, name), path)
    write_json(join_url(url, f"files-{rank}-of-{world_size}.json"), files)


def download_checkpoint(url: str, folder: Path) -> None:
    """Download a committed checkpoint into a local folder and compare every file with its hash.

    Raises:
        Damaged: a file is missing or differs from its hash; the message names it.
    """
    lists = [name for name in list_files(url, ".json") if LIST.fullmatch(name.rpartition("/")[2])]
    try:
        files = {name: entry for part in lists for name, entry in read_json(part).items()}
        hashes = {name: str(entry["sha256"]) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpointError(f"a list of its files cannot be read: {error}") from error
    for name, sha256 in hashes.items():
        local = folder / name
        try:
            get_file(join_url(url, name), local)
        except FileNotFoundError as error:
            raise CorruptCheckpointError(f"{name} is missing") from error
        if _sha256(local) != sha256:
            raise CorruptCheckpointError(f"{name} differs from its hash")


def download_latest(run_url: str, folder: Path) -> str | None:
    """Download the newest intact checkpoint of a run into a new local folder.

    Uncommitted and damaged checkpoints are skipped with a warning.

    Returns:
        Url of the checkpoint, or None if none is committed.

    Raises:
        InputError: all committed checkpoints are damaged.
    """
    damaged = []
    for name, complete in _list_folders(run_url):
        url = join_url(run_url, name)
        if not complete:
            log.warning("%s is incomplete: skipped", url)
            continue
        try:
            download_checkpoint(url, folder / name)
        except CorruptCheckpointError as error:
            log.warning("%s is DAMAGED (%s): using the previous checkpoint", url, error)
            damaged.append(f"{name}: {error}")
            continue
        return url
    if damaged:
        raise InputError(f"every checkpoint in {run_url!r} is damaged ({'; '.join(damaged)}): choose another name=")
    return None


def best_checkpoint(run_url: str, metric: str) -> str | None:
    """Return the url of the committed checkpoint with the lowest value of a metric, or None if none has a finite one.

    Among equal values the newest checkpoint is chosen.
    """
    return _with_lowest(list_committed(run_url), metric)


def _with_lowest(urls: list[str], metric: str) -> str | None:
    """Return the checkpoint with the lowest value of a metric; `urls` are ordered newest first."""
    values = [(checkpoint_metrics(url).get(metric, math.nan), url) for url in urls]
    finite = [(value, url) for value, url in values if math.isfinite(value)]
    return min(finite, key=lambda pair: pair[0])[1] if finite else None


def checkpoint_metrics(url: str) -> dict[str, float]:
    """Return the metrics in a checkpoint's state.json; empty if they cannot be read."""
    try:
        metrics = read_json(join_url(url, STATE)).get("metrics", {})
        return {key: float(value) for key, value in metrics.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}


def prune_checkpoints(run_url: str, newest: int, best_by: str = "") -> None:
    """Remove old checkpoints: all but the newest committed ones, and incomplete ones that are older than those.

    Args:
        run_url: folder of the run.
        newest: number of committed checkpoints to keep.
        best_by: metric whose best (lowest) checkpoint is kept too; empty: none.
    """
    folders = [(join_url(run_url, name), complete) for name, complete in _list_folders(run_url)]
    best_url = _with_lowest([url for url, complete in folders if complete], best_by) if best_by else None
    num_kept = 0
    for url, complete in folders:
        if num_kept < newest or url == best_url:
            num_kept += complete
            continue
        for path in list_files(url, ".json"):  # lists first, so that a partly removed one is not committed
            remove_tree(path)
        remove_tree(url)


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a local file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- one checkpoint ----------------------------------------------------------------------------------------------


def open_checkpoint(url: str) -> Checkpoint:
    """Read the description of the checkpoint at a url; of a run's folder, that of its newest checkpoint.

    Raises:
        InputError: there is no checkpoint, or this version cannot read it.
    """
    if not exists(join_url(url, STATE)):
        newest = latest_checkpoint(url)
        if newest is None:
            raise InputError(
                f"no checkpoint at {url!r}: name a run's folder (<out>/<name>) or one of its step_* folders"
            )
        url = newest
    try:
        state = read_json(join_url(url, STATE))
        fields = {k: state[k] for k in ("step", "clips_seen", "dataset_url", "dataset_digest", "mlflow_run_id")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{STATE} at {url!r} does not describe a checkpoint: {error}") from error
    return Checkpoint(url=url, model=pretrained.model_config_from(state["model"], url), **fields)


def open_model(url: str, *, ema: bool = True) -> tuple[Model, Checkpoint | None]:
    """Load a model for inference.

    Args:
        url: run folder, checkpoint, exported folder or local .t7 file.
        ema: load the moving average of the generator if there is one.

    Returns:
        The model, and its checkpoint; None for an exported folder or a .t7 file.

    Raises:
        InputError: there is no model, or its weights do not fit its settings.
    """
    if url.endswith(".t7"):
        if "://" in url:
            raise InputError(f"{url!r}: .t7 files are read from local paths only, so download it first")
        return pretrained.load(url), None
    checkpoint = None if exists(join_url(url, MODEL)) else open_checkpoint(url)
    folder = checkpoint.url if checkpoint else url
    model = pretrained.load_model_from(lambda name: read_bytes(join_url(folder, name)), folder, ema=ema)
    return model, checkpoint


def load_weights(checkpoint: Checkpoint, name: str, network: nn.Module) -> None:
    """Load weights of a checkpoint into a network; only tensors are read, no pickles.

    Args:
        checkpoint: source of the weights.
        name: generator, generator_ema or discriminator.
        network: destination; names and shapes of its state dict must equal the file's.

    Raises:
        InputError: the file is missing or unreadable, or a tensor's name or shape differs.
    """
    path = join_url(checkpoint.url, WEIGHTS, f"{name}.safetensors")
    try:
        data = read_bytes(path)
    except FileNotFoundError as error:
        raise InputError(f"cannot read weights from {path!r}: {error}") from error
    pretrained.load_into(network, pretrained.read_tensors(data, path), path)
