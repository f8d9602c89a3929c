"""What a run will cost, worked out before it starts: one step on tensors that have shapes and no data."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vgan.errors import InputError
from vgan.models.config import ModelConfig
from vgan.models.factory import make_networks
from vgan.training.config import ObjectiveConfig
from vgan.training.gan_step import StepRandomness, train_step

PROBE = 2  # clips of the step that is looked at
PROCESS_GB = 0.7  # a worker's interpreter with torch, Ray and DeepSpeed
SPEED = 0.4  # of a matrix product's, what a step at base 16 to 64 reaches on CPUs (`make bench-train`)


@dataclass(frozen=True, kw_only=True)
class ResourceEstimate:
    """Figures of one run. Memory is what must be held; what layers work with in passing comes on top of it."""

    parameters: dict[str, int]  # by network
    flop: float  # of one step of all networks, a clip
    activation_gb: float  # kept for the backward passes, a clip
    clips: int  # of the dataset
    batch_size: int
    pieces: int  # that a worker takes its clips in
    sharded: bool  # optimizer state over the workers

    def worker_gb(self, workers: int) -> float:
        """Memory of one of so many workers: process, weights, gradients, Adam's moments, average, activations."""
        total, share = sum(self.parameters.values()), -(-self.batch_size // (workers * self.pieces))
        adam = 8 if not self.sharded else 4 + 12 / workers  # ZeRO's own copy of the weights is sharded too
        state = total * (4 + 4 + adam) + self.parameters["generator"] * 4
        return PROCESS_GB + state / 1e9 + share * self.activation_gb

    @property
    def checkpoint_gb(self) -> float:
        """Weights, the moving average and Adam's two moments, fp32."""
        return (3 * sum(self.parameters.values()) + self.parameters["generator"]) * 4 / 1e9

    def lines(self, workers: tuple[int, int], checkpoint_every: int) -> list[str]:
        """For a person, before the run starts; `workers` are the fewest and the most."""
        networks = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in self.parameters.items())
        memory = " to ".join(f"{gb:.1f}" for gb in sorted({round(self.worker_gb(n), 1) for n in workers}))
        return [
            f"parameters: {networks}; {self.flop / 1e9:.1f} GFLOP a clip and step; about {memory} GB a worker",
            f"an epoch is {self.clips / self.batch_size:.1f} steps of {self.batch_size} clips",
            f"a checkpoint is {self.checkpoint_gb * 1000:,.1f} MB, one every {checkpoint_every} steps",
        ]

    def step_s(self, flop_per_s: float) -> float:
        """Seconds of a step where a matrix product runs at this speed, all workers together."""
        return self.batch_size * self.flop / (SPEED * flop_per_s)


def estimate_resources(
    model: ModelConfig,
    objective: ObjectiveConfig,
    *,
    batch_size: int,
    clips: int,
    zero_stage: int,
    precision: str,
    pieces: int = 1,
) -> ResourceEstimate:
    """Figures of a run on `clips` clips, by one step of its very networks and losses."""
    with torch.device("meta"):
        networks = make_networks(model)
    real = torch.empty(PROBE, 3, model.num_frames, model.size, model.size, device="meta")
    draws = StepRandomness.of_step(0, 0, PROBE, model.z_size).share(0, 1, "meta")
    kept = _SavedTensorBytes()
    engines = {name: _EstimateEngine(network, kept.stop) for name, network in networks.items()}
    # Augmentation and matching look at what is drawn, and cost next to nothing.
    plain = replace(objective, augment=[], horizontal_flip=False, nearest_match_weight=0.0)
    with torch.autograd.graph.saved_tensors_hooks(kept.add, _same):  # in one piece, which needs most
        train_step(engines, real, draws, model, plain)
    with _FlopCounter() as counter:
        train_step(engines, real, draws, model, plain, pieces=min(pieces, PROBE))
    half = 0.5 if precision != "fp32" else 1.0  # autocast keeps most of them in 16 bits
    return ResourceEstimate(
        parameters={name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()},
        flop=counter.flop / PROBE,
        activation_gb=half * kept.bytes / PROBE / 1e9,
        clips=clips,
        batch_size=batch_size,
        pieces=pieces,
        sharded=zero_stage > 0,
    )


def check_memory(size: ResourceEstimate, workers: int, there_gb: float) -> None:
    """Raise InputError unless so many workers can hold what they must in a machine's memory."""
    needed_gb = workers * size.worker_gb(workers)
    if needed_gb > there_gb:
        raise InputError(
            f"{workers} workers need about {needed_gb:.0f} GB with batch_size={size.batch_size}, and this machine has "
            f"{there_gb:.0f}: raise gradient_accumulation_steps=, or lower batch_size=, model.base_width= or workers="
        )


def total_memory_gb() -> float:
    """This machine's memory."""
    return psutil.virtual_memory().total / 1e9


class _FlopCounter(TorchDispatchMode):
    """Operations of products and convolutions as FlopCounterMode counts them, which does not know second gradients."""

    flop = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.flop += count(*args, **(kwargs or {}), out_val=out)
        return out


class _SavedTensorBytes:
    """Bytes of what autograd keeps, until the first backward pass: G's graph and both of D's are then there."""

    def __init__(self) -> None:
        self.bytes, self._seen, self._full = 0, dict[int, Tensor](), False

    def add(self, tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if not (self._full or isinstance(tensor, nn.Parameter) or key in self._seen):
            self._seen[key] = tensor  # held, so that its key is not given away
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor

    def stop(self) -> None:
        self._full = True
        self._seen.clear()


@dataclass
class _EstimateEngine:
    """An engine without an optimizer."""

    module: nn.Module
    before_backward: Callable[[], None]

    def backward(self, loss: Tensor) -> None:
        self.before_backward()
        loss.backward()

    def step(self) -> None:
        self.module.zero_grad()


def _same(value: Any) -> Any:
    return value


def measure_matmul_flops(size: int = 1024) -> float:
    """Speed of a matrix product here on one thread, the best of five."""
    a, threads = torch.randn(size, size), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        best = float("inf")
        for _ in range(5):
            began = time.perf_counter()
            a @ a
            best = min(best, time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return 2 * size**3 / best
