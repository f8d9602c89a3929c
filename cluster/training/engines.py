"""DeepSpeed engines, one per network, and their optimizer state. The only module that imports deepspeed.

Ray Train has already created the process group, and DeepSpeed wraps it. ZeRO-1 shards the optimizer state over the
workers, ZeRO-2 the gradients too, ZeRO-0 nothing: at 28 M parameters there is little memory to save.

In checkpoints, Adam's state is a flat vector over all parameters of a network, in their order; each rank writes one
part of it. This is the layout of ZeRO; the concatenated parts can be split again for any number of workers and any
stage. DeepSpeed's own checkpoints fit only the number of workers that wrote them, and have to be unpickled.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vgan.models.config import ModelConfig
from vgan.models.factory import make_networks
from vgan.models.layers import use_channels_last
from vgan.training.config import ObjectiveConfig
from vgan.training.engine import WeightedEngine, make_optimizer

FIRST_SCALE, GROW_AFTER = 2.0**16, 2000  # defaults of torch.amp.GradScaler
SCALE = "loss_scale"  # key in a checkpoint: value, and steps since its last change
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class LossScale:
    """Loss scale of a network: factor of its losses that keeps small gradients from underflow in fp16."""

    value: float = FIRST_SCALE
    dynamic: bool = True  # halved after a non-finite gradient, doubled after GROW_AFTER finite ones
    used: float = FIRST_SCALE  # scale of the last step
    good: int = 0  # steps since the last change
    lost: bool = False  # the last step was skipped, because its gradient was not finite
    told: bool = False  # `update` was called for the current step

    def update(self, *, finite: bool) -> None:
        """Adjust the scale after a step.

        Args:
            finite: the gradient was finite, and the step was applied.
        """
        self.used, self.lost, self.good, self.told = self.value, not finite, self.good + finite, True
        if not self.dynamic:
            return
        if not finite:
            self.value, self.good = self.value / 2, 0
        elif self.good == GROW_AFTER:
            self.value, self.good = self.value * 2, 0

    @property
    def exhausted(self) -> bool:
        """True if the gradient is not finite and the scale cannot be lowered further."""
        return self.lost and (self.value < 1 or not self.dynamic)


@dataclass(frozen=True)
class Engines:
    """One engine per network of `make_networks`, and the moving average of the generator (fp32, on every rank)."""

    by_name: dict[str, Any]  # name of the network -> deepspeed.DeepSpeedEngine
    average: nn.Module
    device: torch.device
    scales: dict[str, LossScale]  # by network; empty unless precision is fp16

    @property
    def modules(self) -> dict[str, nn.Module]:
        """All networks, by the name of their weights file."""
        return {name: engine.module for name, engine in self.by_name.items()} | {"generator_ema": self.average}


def make_engines(
    model: ModelConfig,
    objective: ObjectiveConfig,
    *,
    batch_size: int,
    zero_stage: int,
    precision: str,
    pieces: int = 1,
    compiled: bool = False,
    max_norm: float = 0.0,
    loss_scale: float = 0.0,
    use_gpu: bool = False,
) -> Engines:
    """Create the networks and their DeepSpeed engines, in an existing process group.

    Args:
        model: settings of the networks.
        objective: settings of the optimizer.
        batch_size: clips per rank and accumulation step.
        zero_stage: stage of DeepSpeed ZeRO: 0, 1 or 2.
        precision: fp32, or bf16 or fp16 for autocast around each forward pass; parameters, gradients and batch-norm
            buffers stay fp32.
        pieces: gradient accumulation steps per batch (`gan.update`).
        compiled: compile each network separately with torch.compile, at its first call.
        max_norm: maximum gradient norm per network; 0 disables clipping.
        loss_scale: constant loss scale for fp16; 0 adjusts it during training (`LossScale`).
        use_gpu: use the CUDA device of this process.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if use_gpu else torch.device("cpu")
    networks = {name: net.to(device) for name, net in make_networks(model).items()}
    average = copy.deepcopy(networks["generator"]).requires_grad_(False)
    if device.type == "cuda" and dist.get_world_size() > 1:  # gloo has no synchronized batch norm
        networks = {name: nn.SyncBatchNorm.convert_sync_batchnorm(net) for name, net in networks.items()}
    if precision in HALVES:
        for net in networks.values():
            # DeepSpeed's own autocast wraps engine(...) only, and the exact update pair calls engine.module(...)
            net.forward = torch.autocast(device.type, HALVES[precision])(net.forward)
    if compiled:
        for net in networks.values():
            net.compile()
    config = {
        "train_micro_batch_size_per_gpu": batch_size,
        "gradient_accumulation_steps": pieces,
        # Set even if it is 0: DeepSpeed's default is 1. In fp16 DeepSpeed would clip scaled gradients.
        "gradient_clipping": 0.0 if precision == "fp16" else max_norm,
        "zero_optimization": {"stage": zero_stage},
        "steps_per_print": None,
    }
    engines = {name: _engine(net, make_optimizer(name, net, objective), config) for name, net in networks.items()}
    if precision in HALVES and zero_stage == 0:  # after the broadcast; under ZeRO they are slices of a flat vector
        for net in (*networks.values(), average):
            use_channels_last(net)
    scales = {}
    if precision == "fp16":
        scales = {name: LossScale(loss_scale or FIRST_SCALE, dynamic=loss_scale == 0) for name in engines}
    for name, scale in scales.items():
        _unscale_before_steps(engines[name], scale, max_norm)
    return Engines(engines, average, device, scales)


def _unscale_before_steps(engine: Any, scale: LossScale, max_norm: float) -> None:
    """Make Adam unscale and clip gradients before each step, and skip steps with a non-finite gradient on any rank.

    DeepSpeed's own loss scaling for autocast clips the scaled gradients, and each rank decides for its own shard.
    """
    adam = engine.optimizer.optimizer if _sharded(engine) else engine.optimizer

    def before_step(adam: torch.optim.Optimizer, *_: object) -> None:
        """Unscale and clip the gradients, or drop them, and update the scale."""
        parameters = [p for group in adam.param_groups for p in group["params"] if p.grad is not None]
        norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float64) for p in parameters]
        squares = torch.stack(norms).square().sum()
        if _sharded(engine):
            dist.all_reduce(squares)
        norm = float(squares.sqrt()) / scale.value
        if math.isfinite(norm):
            clip = min(1.0, max_norm / (norm + 1e-6)) if max_norm else 1.0
            torch._foreach_mul_([p.grad for p in parameters], clip / scale.value)
        else:
            for p in parameters:
                p.grad = None  # Adam skips these, and does not count the step
        scale.update(finite=math.isfinite(norm))

    adam.register_step_pre_hook(before_step)


def _engine(net: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
    """Wrap a network and its optimizer in a DeepSpeedEngine."""
    import deepspeed

    engine, *_ = deepspeed.initialize(model=net, optimizer=optimizer, config=copy.deepcopy(config))
    return engine


@dataclass(frozen=True)
class LossScaledEngine:
    """Engine with scaled losses. ZeRO itself skips steps whose gradient is not finite."""

    engine: Any
    scale: LossScale

    @property
    def module(self) -> nn.Module:
        """The network."""
        return self.engine.module

    def backward(self, loss: Tensor) -> object:
        """Add the gradient of the scaled loss to the gradients of the parameters."""
        return self.engine.backward(loss * self.scale.value)

    def step(self) -> object:
        """Call `step` of the engine; if ZeRO skipped the update, lower the scale."""
        self.scale.told = not self.engine.is_gradient_accumulation_boundary()
        result = self.engine.step()
        if not self.scale.told:
            self.scale.update(finite=False)
        return result


def weighted_engines(engines: Engines, weight: float) -> dict[str, Any]:
    """Return the engines by name with weighted losses, and with scaled losses in fp16.

    DeepSpeed averages gradients over ranks as if all had the same number of clips. If the number of ranks does not
    divide the batch, the mean loss of each rank is weighted by its share, which gives the mean over all clips.

    Args:
        engines: engines of this rank.
        weight: clips of this rank over the mean number of clips per rank.
    """
    scaled = {
        n: LossScaledEngine(e, engines.scales[n]) if n in engines.scales else e for n, e in engines.by_name.items()
    }
    return scaled if weight == 1 else {n: WeightedEngine(e, weight) for n, e in scaled.items()}


def unscale_metrics(engines: Engines, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    """Unscale the gradient norms among the metrics of a step, in place, and add the scales.

    The norm of an overflowed gradient, whose step was skipped, is reported as 0.
    """
    for name, scale in engines.scales.items():
        norm = metrics.pop(f"gradient/{name}") / scale.used
        metrics[f"gradient/{name}"] = norm.new_tensor(0.0) if scale.lost else norm
        metrics[f"scale/{name}"] = norm.new_tensor(scale.used)
    return metrics


def _sharded(engine: Any) -> bool:
    """Return True if the optimizer state is sharded (ZeRO-1 or 2)."""
    return engine.zero_optimization_stage() > 0
