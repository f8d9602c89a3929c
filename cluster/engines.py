"""Each network under a DeepSpeed engine of its own. The only module that imports deepspeed.

Ray Train has made the process group by the time this runs; DeepSpeed wraps it. Optimizer state is sharded over the
workers (ZeRO-1), gradients too (ZeRO-2), or nothing is (ZeRO-0): at 28 M parameters there is little to save.

Adam's state is kept as flat vectors over all of a network's parameters, in their order, of which each rank writes a
part. That is how ZeRO lays it out anyway; put end to end and cut anew, the parts fit any number of workers and any
stage. DeepSpeed's own checkpoints fit the number they were written at, and have to be unpickled.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vgan.errors import InputError
from vgan.models import make_networks
from vgan.models.config import ModelConfig
from vgan.models.layers import use_channels_last
from vgan.training.config import ObjectiveConfig
from vgan.training.engine import WeightedEngine, make_optimizer

T = TypeVar("T")

STALE_LOCK_S = 300.0  # the one build takes about 30 s on two cores
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam
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


def prepare_ops(use_gpu: bool = False) -> None:
    """Choose DeepSpeed's device and make sure that its CPU operator can be built: call before any engine is made.

    DeepSpeed compiles one C++ extension at first use, here into the environment's own folder, unless it was installed
    with it (DS_BUILD_SHM_COMM=1), as in our images. A build that was killed leaves a lock file on which every later
    process would wait for ever: one older than any build is removed.

    Raises:
        InputError: no C++ compiler.
    """
    if use_gpu:
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray does not hide GPUs from workers that asked for none
    os.environ["DS_ACCELERATOR"] = "cpu"
    # torch looks for ninja, which comes with DeepSpeed, on the PATH
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    extensions = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions")))
    check_compiler()
    for lock in extensions.glob("*/lock"):
        if time.time() - lock.stat().st_mtime > STALE_LOCK_S:
            lock.unlink(missing_ok=True)


def has_installed_op() -> bool:
    """Whether DeepSpeed was installed with its CPU communication; told without importing it, which fixes its device."""
    package = importlib.util.find_spec("deepspeed")
    folders = package.submodule_search_locations if package else None
    return any(list(Path(folder).glob("ops/comm/deepspeed_shm_comm_op*.so")) for folder in folders or ())


def check_compiler() -> None:
    """Raise InputError where DeepSpeed could not build its CPU communication and would have to."""
    if not has_installed_op() and shutil.which(os.environ.get("CXX", "c++")) is None:
        raise InputError("no C++ compiler found; DeepSpeed builds its CPU communication with one: install g++")


def build_ops() -> None:
    """Compile DeepSpeed's CPU operator now, as set-up does, so that no training run waits for it (about 30 s)."""
    prepare_ops()
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder().load(verbose=False)


def average_buffers(modules: Sequence[nn.Module]) -> None:
    """Give every rank the mean of all ranks' batch-norm statistics; integer counters are equal already.

    DeepSpeed synchronizes parameters only. Called before a checkpoint, so that what is saved does not depend on which
    rank saves it.
    """
    if dist.get_world_size() == 1:
        return
    buffers = [b for module in modules for b in module.buffers() if b.is_floating_point()]
    flat = torch.cat([b.reshape(-1) for b in buffers])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def mean_over_ranks(metrics: dict[str, Tensor], weight: float = 1.0) -> dict[str, float]:
    """Scalars averaged over the ranks, in one collective call. Every rank must call it.

    Args:
        metrics: this rank's scalars.
        weight: of this rank, 1 on average over all (see `weigh`).
    """
    values = torch.stack([value.detach().float().reshape(()) for value in metrics.values()]) * weight
    dist.all_reduce(values)
    return dict(zip(metrics, (values / dist.get_world_size()).tolist(), strict=True))


def any_rank(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Which flags are up on any rank. Every rank must call it."""
    if dist.get_world_size() == 1:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(raised, dist.ReduceOp.MAX)
    return [bool(value) for value in raised.tolist()]


def is_rank_zero() -> bool:
    return dist.get_rank() == 0


def of_rank_zero(value: T) -> T:
    """What rank 0 holds. Every rank must call it."""
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


# ---- shares of a batch -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scaled:
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


def weigh(engines: Engines, weight: float) -> dict[str, Any]:
    """The engines by name for a rank whose share of the global batch is `weight` times an equal one.

    DeepSpeed averages gradients over ranks as if all held equally many clips. Where they do not, because their number
    does not divide the batch, each rank's mean loss counts by its share, and the sum is the mean over all clips. What
    fp16 scales losses by comes in here as well.
    """
    found = {n: Scaled(e, engines.scales[n]) if n in engines.scales else e for n, e in engines.by_name.items()}
    return found if weight == 1 else {n: WeightedEngine(e, weight) for n, e in found.items()}


def unscaled(engines: Engines, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    """The metrics of a step with gradient norms as they are without a scale, and the scales.

    The norm of a gradient that overflowed, for which no step was taken, is told as 0.
    """
    for name, scale in engines.scales.items():
        norm = metrics.pop(f"gradient/{name}") / scale.used
        metrics[f"gradient/{name}"] = norm.new_tensor(0.0) if scale.lost else norm
        metrics[f"scale/{name}"] = norm.new_tensor(scale.used)
    return metrics


# ---- optimizer state ---------------------------------------------------------------------------------------------


def save_optimizers(engines: Engines, folder: Path) -> None:
    """Write this rank's part of every network's Adam state below `folder`. Needs no other rank."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    folder.mkdir(parents=True, exist_ok=True)
    for name, engine in engines.by_name.items():
        state = {key: value.detach().cpu().contiguous() for key, value in _adam_part(engine, rank, world_size).items()}
        if name in engines.scales:
            scale = engines.scales[name]
            state[SCALE] = torch.tensor([scale.value, float(scale.good)], dtype=torch.float64)
        save_file(state, str(folder / f"{name}-{rank}-of-{world_size}.safetensors"))


def load_optimizers(engines: Engines, folder: Path) -> None:
    """Restore Adam's state from what any number of ranks wrote. The modules must hold their weights already."""
    for name, engine in engines.by_name.items():
        paths = sorted(folder.glob(f"{name}-*-of-*.safetensors"), key=lambda p: int(p.stem.split("-")[-3]))
        parts = [load_file(path) for path in paths]
        _set_adam(engine, {k: torch.cat([part[k] for part in parts]) for k in MOMENTS}, parts[0]["step"])
        if name in engines.scales and SCALE in parts[0]:
            value, good = parts[0][SCALE].tolist()
            engines.scales[name].value, engines.scales[name].good = value, int(good)


def _adam_part(engine: Any, rank: int, world_size: int) -> dict[str, Tensor]:
    """This rank's part of flat Adam moments (P/N,), and the count of steps."""
    if _sharded(engine):
        (part,) = engine.optimizer.single_partition_of_fp32_groups
        return _adam_of(engine.optimizer.optimizer, part)
    states = [_adam_of(engine.optimizer, p) for p in engine.optimizer.param_groups[0]["params"]]
    flat = {key: torch.cat([state[key].reshape(-1) for state in states]) for key in MOMENTS}
    return {key: value.tensor_split(world_size)[rank] for key, value in flat.items()} | {"step": states[0]["step"]}


def _adam_of(adam: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """A parameter's moments and count of steps; zeros before the first."""
    state = adam.state.get(parameter) or {key: torch.zeros_like(parameter) for key in MOMENTS} | {
        "step": torch.zeros(())
    }
    return {key: state[key] for key in (*MOMENTS, "step")}


def _set_adam(engine: Any, flat: dict[str, Tensor], step: Tensor) -> None:
    """Give Adam its moments, each flat over all parameters (P,) and perhaps padded at the end."""
    parameters = [p for p in engine.module.parameters() if p.requires_grad]
    numel = sum(p.numel() for p in parameters)
    flat = {key: value[:numel] for key, value in flat.items()}
    if _sharded(engine):
        engine.optimizer.refresh_fp32_params()  # its own copy of the weights that the module was given
        (part,) = engine.optimizer.single_partition_of_fp32_groups
        padded = {k: nn.functional.pad(v, (0, part.numel() * dist.get_world_size() - numel)) for k, v in flat.items()}
        mine = {key: value.split(part.numel())[dist.get_rank()] for key, value in padded.items()}
        adam = engine.optimizer.optimizer
        moments = {key: value.to(part.device, copy=True) for key, value in mine.items()}
        adam.state[part] = moments | {"step": _count(step, part, adam)}
        return
    pieces = {key: value.split([p.numel() for p in parameters]) for key, value in flat.items()}
    for index, parameter in enumerate(parameters):
        moments = {k: torch.empty_like(parameter).copy_(pieces[k][index].view_as(parameter)) for k in MOMENTS}
        engine.optimizer.state[parameter] = moments | {"step": _count(step, parameter, engine.optimizer)}


def _count(step: Tensor, parameter: Tensor, adam: torch.optim.Optimizer) -> Tensor:
    """Adam's count of steps where it wants it: with the parameters if it is fused, else on the CPU."""
    return step.to(parameter.device if adam.param_groups[0]["fused"] else "cpu", copy=True)


def _sharded(engine: Any) -> bool:
    return engine.zero_optimization_stage() > 0
