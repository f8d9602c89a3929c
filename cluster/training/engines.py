"""Each network under a DeepSpeed engine of its own. The only module that imports deepspeed.

Ray Train has made the process group by the time this runs; DeepSpeed wraps it. Optimizer state is sharded over the
workers (ZeRO-1), gradients too (ZeRO-2), or nothing is (ZeRO-0): at 28 M parameters there is little to save.

Adam's state is kept as flat vectors over all of a network's parameters, in their order, of which each rank writes a
part. That is how ZeRO lays it out anyway; put end to end and cut anew, the parts fit any number of workers and any
stage. DeepSpeed's own checkpoints fit the number they were written at, and have to be unpickled.
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

FIRST_SCALE, GROW_AFTER = 2.0**16, 2000  # as torch.amp.GradScaler
SCALE = "loss_scale"  # in a checkpoint: its value and its steps since it changed
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class LossScale:
    """What a network's losses are multiplied with, so that small gradients survive 16 bits (fp16)."""

    value: float = FIRST_SCALE
    dynamic: bool = True  # halved by a gradient that is not finite, doubled after GROW_AFTER that were
    used: float = FIRST_SCALE  # in the last step
    good: int = 0  # steps since it last changed
    lost: bool = False  # the last step's gradient was not finite, and no step was taken
    told: bool = False  # what became of the step that is being taken

    def update(self, *, finite: bool) -> None:
        """After a step."""
        self.used, self.lost, self.good, self.told = self.value, not finite, self.good + finite, True
        if not self.dynamic:
            return
        if not finite:
            self.value, self.good = self.value / 2, 0
        elif self.good == GROW_AFTER:
            self.value, self.good = self.value * 2, 0

    @property
    def exhausted(self) -> bool:
        """The gradient is not finite whatever it is scaled by."""
        return self.lost and (self.value < 1 or not self.dynamic)


@dataclass(frozen=True)
class Engines:
    """The networks of `make_networks`, an engine each, and the generator's moving average (fp32, on every rank)."""

    by_name: dict[str, Any]  # name of the network -> deepspeed.DeepSpeedEngine
    average: nn.Module
    device: torch.device
    scales: dict[str, LossScale]  # by network; empty unless precision is fp16

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Every network by the name that its weights are saved under."""
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
    """Build the networks under DeepSpeed, in a process group that already exists.

    Args:
        model: the networks.
        objective: the optimizer's settings.
        batch_size: clips a rank sees at once.
        pieces: such batches in a step (`gan.update`).
        zero_stage: 0, 1 or 2.
        use_gpu: put the networks on this process's CUDA device.
        precision: fp32, or bf16 or fp16 for autocast around each forward pass; parameters, gradients and batch-norm
            buffers stay fp32.
        compiled: whether torch.compile compiles each network, by itself, when it is first called.
        max_norm: a network's gradient is scaled down to this norm where it is longer; 0 leaves it.
        loss_scale: of fp16; 0 finds one as it goes (`LossScale`).
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
        # Told even where it is 0: DeepSpeed's own default is 1. In fp16 it would see scaled gradients.
        "gradient_clipping": 0.0 if precision == "fp16" else max_norm,
        "zero_optimization": {"stage": zero_stage},
        "steps_per_print": None,
    }
    engines = {name: _engine(net, make_optimizer(name, net, objective), config) for name, net in networks.items()}
    if precision in HALVES and zero_stage == 0:  # now that they are broadcast; ZeRO's are slices of a flat vector
        for net in (*networks.values(), average):
            use_channels_last(net)
    scales = {}
    if precision == "fp16":
        scales = {name: LossScale(loss_scale or FIRST_SCALE, dynamic=loss_scale == 0) for name in engines}
    for name, scale in scales.items():
        _unscale_before_steps(engines[name], scale, max_norm)
    return Engines(engines, average, device, scales)


def _unscale_before_steps(engine: Any, scale: LossScale, max_norm: float) -> None:
    """Have Adam divide its gradients by the scale, and keep still where any rank's are not finite.

    DeepSpeed's own scaling for autocast clips scaled gradients, and lets each rank decide for its shard.
    """
    adam = engine.optimizer.optimizer if _sharded(engine) else engine.optimizer

    def before_step(adam: torch.optim.Optimizer, *_: object) -> None:
        held = [p for group in adam.param_groups for p in group["params"] if p.grad is not None]
        norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float64) for p in held]
        squares = torch.stack(norms).square().sum()
        if _sharded(engine):
            dist.all_reduce(squares)
        norm = float(squares.sqrt()) / scale.value
        if math.isfinite(norm):
            clip = min(1.0, max_norm / (norm + 1e-6)) if max_norm else 1.0
            torch._foreach_mul_([p.grad for p in held], clip / scale.value)
        else:
            for p in held:
                p.grad = None  # Adam passes over these, its count of steps too
        scale.update(finite=math.isfinite(norm))

    adam.register_step_pre_hook(before_step)


def _engine(net: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
    import deepspeed

    engine, *_ = deepspeed.initialize(model=net, optimizer=optimizer, config=copy.deepcopy(config))
    return engine


@dataclass(frozen=True)
class LossScaledEngine:
    """An engine whose losses are scaled. ZeRO itself takes no step where the gradient is not finite."""

    engine: Any
    scale: LossScale

    @property
    def module(self) -> nn.Module:
        return self.engine.module

    def backward(self, loss: Tensor) -> object:
        return self.engine.backward(loss * self.scale.value)

    def step(self) -> object:
        self.scale.told = not self.engine.is_gradient_accumulation_boundary()
        done = self.engine.step()
        if not self.scale.told:
            self.scale.update(finite=False)
        return done


def weighted_engines(engines: Engines, weight: float) -> dict[str, Any]:
    """The engines by name for a rank whose share of the global batch is `weight` times an equal one.

    DeepSpeed averages gradients over ranks as if all held equally many clips. Where they do not, because their number
    does not divide the batch, each rank's mean loss counts by its share, and the sum is the mean over all clips. What
    fp16 scales losses by comes in here as well.
    """
    found = {
        n: LossScaledEngine(e, engines.scales[n]) if n in engines.scales else e for n, e in engines.by_name.items()
    }
    return found if weight == 1 else {n: WeightedEngine(e, weight) for n, e in found.items()}


def unscale_metrics(engines: Engines, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    """The metrics of a step with gradient norms as they are without a scale, and the scales.

    The norm of a gradient that overflowed, for which no step was taken, is told as 0.
    """
    for name, scale in engines.scales.items():
        norm = metrics.pop(f"gradient/{name}") / scale.used
        metrics[f"gradient/{name}"] = norm.new_tensor(0.0) if scale.lost else norm
        metrics[f"scale/{name}"] = norm.new_tensor(scale.used)
    return metrics


def _sharded(engine: Any) -> bool:
    return engine.zero_optimization_stage() > 0
