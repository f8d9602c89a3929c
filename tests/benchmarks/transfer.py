"""What a child of a sweep costs, in one run: `make bench-transfer`. Prints a table; asserts nothing.

A child as jobs.finetune runs it, a task of Ray's with its clips in shared memory, against a bare loop of the same
network on the same clips, in turns. Both have one thread. Nothing decodes a video: clips are read once a sweep.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import ray
import torch
from timing import seconds
from torch import Tensor
from torch.nn import functional as F

from cluster.runtime.ray_session import ray_session
from cluster.transfer.labeled_clips import LabeledClips
from cluster.transfer.sweep_run import Initialization, SweepRun, finetune_run
from vgan.models.classifier import Classifier
from vgan.models.config import ModelConfig
from vgan.transfer.config import FinetuneConfig

CLASSES, TRAIN, TEST, STEPS, REPEATS = 4, 64, 16, 20, 5
BASES = (16, 32)


def noise_clips() -> LabeledClips:
    """Clips of noise, as a split would be."""
    num = TRAIN + TEST
    return LabeledClips(
        protocol="noise-split1_1clip",
        classes=tuple(f"class{k}" for k in range(CLASSES)),
        frames=np.random.default_rng(0).integers(0, 256, (num, 32, 64, 64, 3), np.uint8),
        videos=np.array([f"{i:03d}" for i in range(num)]),
        labels=np.arange(num) % CLASSES,
        train=np.arange(num) < TRAIN,
        rows=np.arange(num)[:, None],
        num_missing=0,
        num_rejected=0,
    )


def bare(model: ModelConfig, clips: Tensor, labels: Tensor, config: FinetuneConfig) -> Callable[[], object]:
    """A plain loop: shuffled batches, Adam, cross entropy, and one look at the test clips."""

    def shown(batch: Tensor) -> Tensor:
        return batch.permute(0, 4, 1, 2, 3).float() / 127.5 - 1

    def work() -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        network = Classifier(model, CLASSES, config.dropout)
        adam = torch.optim.Adam(network.parameters(), lr=config.learning_rate, betas=(config.beta1, 0.999))
        network.train()
        for _ in range(config.iterations):
            batch = torch.randperm(TRAIN)[: config.batch_size]
            adam.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
                logits = network(shown(clips[batch]))
            F.cross_entropy(logits.float(), labels[batch]).backward()
            adam.step()
        network.eval()
        with torch.no_grad():
            network(shown(clips[TRAIN:])).argmax(dim=1)

    return work


def main() -> None:
    """The table."""
    clips = noise_clips()
    frames, labels = torch.from_numpy(clips.frames), torch.from_numpy(clips.labels)
    print(f"{STEPS} steps of {FinetuneConfig().batch_size} clips, {TEST} clips tested; best of {REPEATS}")
    print(f"{'':<14}{'bare loop s':>13}{'child s':>10}{'ratio':>8}{'clips/s':>10}")
    with ray_session(""):
        shared = ray.put(clips)
        task = ray.remote(num_cpus=1)(finetune_run)
        for base, precision in product(BASES, ("fp32", "bf16")):
            model, config = ModelConfig(base_width=base), FinetuneConfig(iterations=STEPS, precision=precision)
            launch = partial(task.remote, SweepRun(1, "random", 1.0, 0), shared, Initialization(model), config)
            works = (bare(model, frames, labels, config), lambda launch=launch: ray.get(launch()))
            for work in works:
                work()
            turns = [[seconds(work) for work in works] for _ in range(REPEATS)]
            plain, ours = (min(column) for column in zip(*turns, strict=True))
            rate = STEPS * config.batch_size / ours
            print(
                f"base {base:<4}{precision:<5}{plain:>13.2f}{ours:>10.2f}{ours / plain:>8.2f}{rate:>10.0f}", flush=True
            )


if __name__ == "__main__":
    main()
