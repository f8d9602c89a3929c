"""Cost estimate of a training run before it starts: one step on meta tensors, which have shapes and no data."""

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

PROBE = 2  # clips in the measured step
PROCESS_GB = 0.7  # a worker's interpreter with torch, Ray and DeepSpeed
SPEED = 0.4  # FLOP/s of a step over those of a matrix product; base 16 to 64 on CPUs (`make bench-train`)


@dataclass(frozen=True, kw_only=True)
class ResourceEstimate:
    """Estimated cost of one run. Memory counts persistent tensors; temporary buffers of layers come on top."""

    parameters: dict[str, int]  # by network
    flop: float  # per clip, of one step of all networks
    activation_gb: float  # per clip, saved for the backward passes
    clips: int  # in the dataset
    batch_size: int
    pieces: int  # gradient accumulation steps per batch
    sharded: bool  # optimizer state is sharded over the workers

    def worker_gb(self, workers: int) -> float:
        """Estimate memory per worker, GB: process, weights, gradients, Adam's moments, moving average, activations."""
        total, share = sum(self.parameters.values()), -(-self.batch_size // (workers * self.pieces))
        adam = 8 if not self.sharded else 4 + 12 / workers  # ZeRO's copy of the weights is sharded too
        state = total * (4 + 4 + adam) + self.parameters["generator"] * 4
        return PROCESS_GB + state / 1e9 + share * self.activation_gb

    @property
    def checkpoint_gb(self) -> float:
        """Size of a checkpoint, GB: weights, the moving average and Adam's two moments in fp32."""
        return (3 * sum(self.parameters.values()) + self.parameters["generator"]) * 4 / 1e9

    def lines(self, workers: tuple[int, int], checkpoint_every: int) -> list[str]:
        """Format the estimate as lines of text; `workers` are the minimum and the maximum number of workers."""
        networks = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in self.parameters.items())
        memory = " to ".join(f"{gb:.1f}" for gb in sorted({round(self.worker_gb(n), 1) for n in workers}))
        return [
            f"parameters: {networks}; {self.flop / 1e9:.1f} GFLOP per clip and step; about {memory} GB per worker",
            f"epoch: {self.clips / self.batch_size:.1f} steps of {self.batch_size} clips",
            f"checkpoint: {self.checkpoint_gb * 1000:,.1f} MB, one every {checkpoint_every} steps",
        ]

    def step_s(self, flop_per_s: float) -> float:
        """Estimate seconds per step from the speed of a matrix product, summed over all workers."""
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
    """Estimate the cost of a run from one step of its networks and losses on meta tensors.

    Args:
        model: settings of the networks.
        objective: settings of the losses.
        batch_size: clips per step over all workers.
        clips: number of clips in the dataset.
        zero_stage: stage of DeepSpeed ZeRO.
        precision: fp32, bf16 or fp16.
        pieces: gradient accumulation steps per batch.
    """
    with torch.device("meta"):
        networks = make_networks(model)
    real = torch.empty(PROBE, 3, model.num_frames, model.size, model.size, device="meta")
    draws = StepRandomness.of_step(0, 0, PROBE, model.z_size).share(0, 1, "meta")
    activations = _SavedTensorBytes()
    engines = {name: _EstimateEngine(network, activations.stop) for name, network in networks.items()}
    # Augmentation and matching read values, which meta tensors lack, and their cost is negligible.
    plain = replace(objective, augment=[], horizontal_flip=False, nearest_match_weight=0.0)
    with torch.autograd.graph.saved_tensors_hooks(activations.add, _same):  # one piece: the largest memory
        train_step(engines, real, draws, model, plain)
    with _FlopCounter() as counter:
        train_step(engines, real, draws, model, plain, pieces=min(pieces, PROBE))
    factor = 0.5 if precision != "fp32" else 1.0  # autocast saves most activations in 16 bits
    return ResourceEstimate(
        parameters={name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()},
        flop=counter.flop / PROBE,
        activation_gb=factor * activations.bytes / PROBE / 1e9,
        clips=clips,
        batch_size=batch_size,
        pieces=pieces,
        sharded=zero_stage > 0,
    )


def check_memory(size: ResourceEstimate, workers: int, there_gb: float) -> None:
    """Check that workers fit into the memory of one machine.

    Args:
        size: estimate of the run.
        workers: number of workers on the machine.
        there_gb: memory of the machine.

    Raises:
        InputError: they need more memory.
    """
    needed_gb = workers * size.worker_gb(workers)
    if needed_gb > there_gb:
        raise InputError(
            f"{workers} workers need about {needed_gb:.0f} GB with batch_size={size.batch_size}, and this machine has "
            f"{there_gb:.0f}: raise gradient_accumulation_steps=, or lower batch_size=, model.base_width= or workers="
        )


def total_memory_gb() -> float:
    """Return the memory of this machine, GB."""
    return psutil.virtual_memory().total / 1e9


class _FlopCounter(TorchDispatchMode):
    """FLOP counter with the formulas of torch's FlopCounterMode, which itself does not support second gradients."""

    flop = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and add its FLOP."""
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.flop += count(*args, **(kwargs or {}), out_val=out)
        return out


class _SavedTensorBytes:
    """Counter of bytes that autograd saves until the first backward pass, when G's and both of D's graphs exist."""

    def __init__(self) -> None:
        self.bytes, self._counted, self._stopped = 0, dict[int, Tensor](), False

    def add(self, tensor: Tensor) -> Tensor:
        """Count a saved tensor once, unless it is a parameter; return it unchanged."""
        key = tensor.untyped_storage()._cdata
        if not (self._stopped or isinstance(tensor, nn.Parameter) or key in self._counted):
            self._counted[key] = tensor  # a reference, so that its key (an address) is not reused
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor

    def stop(self) -> None:
        """Stop counting."""
        self._stopped = True
        self._counted.clear()


@dataclass
class _EstimateEngine:
    """Engine without an optimizer."""

    module: nn.Module
    before_backward: Callable[[], None]

    def backward(self, loss: Tensor) -> None:
        """Compute gradients after calling `before_backward`."""
        self.before_backward()
        loss.backward()

    def step(self) -> None:
        """Clear the gradients."""
        self.module.zero_grad()


def _same(value: Any) -> Any:
    """Return the value unchanged."""
    return value


def measure_matmul_flops(size: int = 1024) -> float:
    """Measure the FLOP/s of a float32 matrix product on one thread of this machine, the best of five."""
    a, threads = torch.randn(size, size), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        best = float("inf")
        for _ in range(5):
            started = time.perf_counter()
            a @ a
            best = min(best, time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return 2 * size**3 / best
