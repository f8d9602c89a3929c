"""One child of a sweep: a network from its init, fine-tuned on a share of the labels, and what it says of the tests."""

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
    """What an init starts with."""

    model: ModelConfig
    trunk: dict[str, Tensor] | None = None  # trained weights; None for random ones
    url: str = ""  # where they are from
    checkpoint: Checkpoint | None = None  # the same, where a training run wrote it: then its dataset is known


@dataclass(frozen=True, order=True)
class SweepRun:
    """One fine-tuning."""

    split: int
    init: str
    fraction: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.init}-f{self.fraction:g}-seed{self.seed}-split{self.split}"


def finetune_run(
    child: SweepRun,
    clips: LabeledClips,
    start: Initialization,
    config: FinetuneConfig,
    use_gpu: bool = False,
    team: WorkerGroup = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Train and test one child; suitable for `ray.remote`. Returns plain values for JSON.

    Args:
        team: the workers that share it; all of them test.
    """
    device = "cuda" if use_gpu else "cpu"
    keep_freed_memory()
    torch.manual_seed(child.seed)
    network = Classifier(start.model, len(clips.classes), config.dropout)
    if start.trunk is not None:
        network.trunk.load_state_dict(start.trunk)
    pool = np.flatnonzero(clips.train)
    chosen = pool[label_subset(clips.labels[pool], child.fraction, child.seed)]
    test = np.flatnonzero(~clips.train)
    rows = clips.rows[test]  # (V, clips a video)

    def frames(found: np.ndarray) -> Tensor:
        return torch.from_numpy(clips.frames[found])  # a copy of these alone: Ray's memory is read-only

    losses: tuple[float, ...] = ()
    if child.init == "logistic":
        remove_spectral_norm(network)
        train_maps, test_maps = (
            features(network.trunk, frames(found), config.batch_size, device)
            for found in (clips.rows[chosen, 0], rows.ravel())
        )
        found = logistic_probabilities(
            train_maps, clips.labels[chosen], test_maps, len(clips.classes), config.l2_penalty
        )
    else:
        network.settle()
        if child.init in _RESETS:
            network.trunk.apply(_RESETS[child.init])
        losses = finetune(
            network,
            frames(clips.rows[chosen, 0]),
            torch.tensor(clips.labels[chosen]),
            config,
            seed=child.seed,
            device=device,
            team=team,
        )
        found = probabilities(network, frames(rows.ravel()), config.batch_size, device)
    scores = score_videos(found, np.repeat(np.arange(len(test)), rows.shape[1]), clips.labels[test], clips.protocol)
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
        "num_train": len(chosen),
        "subset": sorted(clips.videos[chosen].tolist()),
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
    """The same on so many Ray Train workers, which share each batch.

    Args:
        shared: references to LabelledClips and Start in Ray's object store; in a list, so that Ray does not fetch them
            here.
        cpus: cores a worker.
        scratch: url of a folder all nodes share.
    """
    fs, path = arrow_filesystem(scratch)
    trainer = TorchTrainer(
        _on_worker,
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


def _on_worker(loop: dict[str, Any]) -> dict[str, Any]:
    context = ray.train.get_context()
    team = WorkerGroup(rank=context.get_world_rank(), size=context.get_world_size(), average=average_tensors)
    clips, start = ray.get(loop["shared"])
    return finetune_run(loop["child"], clips, start, loop["config"], loop["use_gpu"], team)


def _reset(module: nn.Module) -> None:
    """PyTorch's default initialization."""
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()


def _reset_as_torch7(module: nn.Module) -> None:
    """Weights and biases uniform below one over the root of the fan-in, batch-norm scales uniform in 0..1.

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
