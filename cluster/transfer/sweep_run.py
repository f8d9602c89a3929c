"""Run of a sweep: fine-tune a network from its initialization on a fraction of the labels, and score test videos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch import Tensor, nn

from cluster.checkpoints.store import Checkpoint
from cluster.runtime.all_reduce import average_tensors
from cluster.runtime.placement import train_labels
from cluster.storage.urls import arrow_filesystem
from cluster.transfer.labeled_clips import LabeledClips
from vgan.allocator import keep_freed_memory
from vgan.models.classifier import Classifier
from vgan.models.config import ModelConfig
from vgan.models.layers import remove_spectral_norm
from vgan.transfer.config import FinetuneConfig
from vgan.transfer.finetune import SINGLE_PROCESS, WorkerGroup, finetune
from vgan.transfer.label_subsets import label_subset
from vgan.transfer.logistic_probe import features, logistic_probabilities
from vgan.transfer.scores import probabilities, score_videos


@dataclass(frozen=True)
class Initialization:
    """Initial state of a run: architecture and, if trained, the weights of the trunk."""

    model: ModelConfig
    trunk: dict[str, Tensor] | None = None  # trained weights; None: random
    url: str = ""  # source of the weights
    checkpoint: Checkpoint | None = None  # at `url`, if a training run wrote it; it records its dataset


@dataclass(frozen=True, order=True)
class SweepRun:
    """Coordinates of one run of a sweep."""

    split: int
    init: str
    fraction: float  # of the training labels, in (0, 1]
    seed: int

    @property
    def name(self) -> str:
        """Name of the run, unique within a sweep."""
        return f"{self.init}-f{self.fraction:g}-seed{self.seed}-split{self.split}"


def finetune_run(
    child: SweepRun,
    clips: LabeledClips,
    start: Initialization,
    config: FinetuneConfig,
    use_gpu: bool = False,
    team: WorkerGroup = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Train and test one run; suitable for `ray.remote`.

    Args:
        child: initialization, label fraction, seed and split.
        clips: clips of the split.
        start: architecture and trained weights.
        config: settings of fine-tuning and of the logistic regression.
        use_gpu: compute on the GPU instead of the CPU.
        team: workers that share each training batch; each of them scores all test videos.

    Returns:
        Accuracy, predictions, losses and the subset of training videos, as plain values for JSON.
    """
    device = "cuda" if use_gpu else "cpu"
    keep_freed_memory()
    torch.manual_seed(child.seed)
    network = Classifier(start.model, len(clips.classes), config.dropout)
    if start.trunk is not None:
        network.trunk.load_state_dict(start.trunk)
    train = np.flatnonzero(clips.train)
    train = train[label_subset(clips.labels[train], child.fraction, child.seed)]
    test = np.flatnonzero(~clips.train)
    train_rows, test_rows = clips.rows[train, 0], clips.rows[test]  # (V,), and (V, R) with R clips per video

    def frames(rows: np.ndarray) -> Tensor:
        return torch.from_numpy(clips.frames[rows])  # indexing copies these clips: Ray's shared memory is read-only

    losses: tuple[float, ...] = ()
    if child.init == "logistic":
        remove_spectral_norm(network)
        train_maps, test_maps = (
            features(network.trunk, frames(rows), config.batch_size, device) for rows in (train_rows, test_rows.ravel())
        )
        predicted = logistic_probabilities(
            train_maps, clips.labels[train], test_maps, len(clips.classes), config.l2_penalty
        )
    else:
        network.prepare_for_finetuning()
        if child.init in _RESETS:
            network.trunk.apply(_RESETS[child.init])
        losses = finetune(
            network,
            frames(train_rows),
            torch.tensor(clips.labels[train]),
            config,
            seed=child.seed,
            device=device,
            team=team,
        )
        predicted = probabilities(network, frames(test_rows.ravel()), config.batch_size, device)
    video_of_clip = np.repeat(np.arange(len(test)), test_rows.shape[1])
    scores = score_videos(predicted, video_of_clip, clips.labels[test], clips.protocol)
    return {
        "accuracy": scores.accuracy,
        "chance": 1 / len(clips.classes),
        "protocol": scores.protocol,
        "metrics": scores.metrics,
        "losses": list(losses),
        "classes": list(clips.classes),
        "tested": clips.videos[test].tolist(),
        "labels": scores.labels.tolist(),
        "predicted": scores.predicted.tolist(),
        "num_train": len(train),
        "subset": sorted(clips.videos[train].tolist()),
    }


def finetune_run_distributed(
    child: SweepRun,
    shared: list[Any],
    config: FinetuneConfig,
    use_gpu: bool,
    *,
    workers: int,
    cpus: float,
    scratch: str,
) -> dict[str, Any]:
    """Train and test one run on several Ray Train workers, which share each batch.

    Args:
        child: initialization, label fraction, seed and split.
        shared: references to `LabeledClips` and `Initialization` in Ray's object store; in a list, so that Ray passes
            the references instead of fetching the objects here.
        config: settings of fine-tuning.
        use_gpu: give each worker a GPU.
        workers: number of workers.
        cpus: CPU cores per worker.
        scratch: URL of a folder that all nodes share.

    Returns:
        The result of `finetune_run`.
    """
    fs, path = arrow_filesystem(scratch)
    trainer = TorchTrainer(
        _worker_loop,
        train_loop_config={"child": child, "shared": shared, "config": config, "use_gpu": use_gpu},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus},
            label_selector=train_labels(),
        ),
        run_config=RunConfig(name=child.name, storage_path=path, storage_filesystem=fs),
    )
    outcome: dict[str, Any] = trainer.fit().return_value
    return outcome


def _worker_loop(loop: dict[str, Any]) -> dict[str, Any]:
    """Train and test on one worker of the group; `loop` is the configuration from `finetune_run_distributed`."""
    context = ray.train.get_context()
    team = WorkerGroup(rank=context.get_world_rank(), size=context.get_world_size(), average=average_tensors)
    clips, start = ray.get(loop["shared"])
    return finetune_run(loop["child"], clips, start, loop["config"], loop["use_gpu"], team)


def _reset(module: nn.Module) -> None:
    """Reinitialize a module with PyTorch's default."""
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()


def _reset_as_torch7(module: nn.Module) -> None:
    """Reinitialize a module with Torch7's default.

    Weights and biases of convolutions are uniform in [-b, b] with b = fan_in ** -0.5, batch norm scales in [0, 1].
    https://github.com/torch/nn/blob/master/VolumetricConvolution.lua and BatchNormalization.lua
    """
    if isinstance(module, nn.Conv3d):
        bound = module.weight[0].numel() ** -0.5
        nn.init.uniform_(module.weight, -bound, bound)
        if module.bias is not None:
            nn.init.uniform_(module.bias, -bound, bound)
    elif isinstance(module, nn.BatchNorm3d):
        nn.init.uniform_(module.weight, 0.0, 1.0)
        nn.init.zeros_(module.bias)


_RESETS = {"random": _reset, "random_torch": _reset_as_torch7}
