"""Each network under a DeepSpeed engine of its own. The only module that imports deepspeed.

Ray Train has made the process group by the time this runs; DeepSpeed wraps it. Optimizer state is sharded (ZeRO-1)
or not (ZeRO-0): at 28 M parameters there is nothing for the higher stages to save, and they reject two networks
that share a graph.
"""

from __future__ import annotations

import copy
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vgan.config import ModelConfig, ObjectiveConfig
from vgan.errors import BadInput
from vgan.gan import make_optimizer
from vgan.models import make_networks

STALE_LOCK_S = 300.0  # the one build takes about 30 s on two cores
TAG = "engine"  # DeepSpeed's name for the one state in a checkpoint folder


@dataclass(frozen=True)
class Engines:
    """The networks of `make_networks`, an engine each, and the generator's moving average (fp32, on every rank)."""

    by_name: dict[str, Any]  # name of the network -> deepspeed.DeepSpeedEngine
    average: nn.Module
    device: torch.device

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
    compiled: bool = False,
    use_gpu: bool = False,
) -> Engines:
    """Build the networks under DeepSpeed, in a process group that already exists.

    Args:
        model: the networks.
        objective: the optimizer's settings.
        batch_size: clips a rank sees in a step.
        zero_stage: 0 or 1.
        use_gpu: put the networks on this process's CUDA device.
        precision: fp32, or bf16 for autocast around each forward pass; parameters and batch-norm buffers stay fp32.
        compiled: whether torch.compile compiles each network, by itself, when it is first called.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if use_gpu else torch.device("cpu")
    # Weights stay contiguous, for DeepSpeed cannot broadcast them channels last; what flows through them is
    # (vgan.models.layers.working_layout).
    networks = {name: net.to(device) for name, net in make_networks(model).items()}
    average = copy.deepcopy(networks["generator"]).requires_grad_(False)
    if device.type == "cuda" and dist.get_world_size() > 1:  # gloo has no synchronized batch norm
        networks = {name: nn.SyncBatchNorm.convert_sync_batchnorm(net) for name, net in networks.items()}
    if precision == "bf16":
        for net in networks.values():
            # DeepSpeed's own autocast wraps engine(...) only, and the exact update pair calls engine.module(...)
            net.forward = torch.autocast(device.type, torch.bfloat16)(net.forward)
    if compiled:
        for net in networks.values():
            net.compile()
    config = {
        "train_micro_batch_size_per_gpu": batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,  # DeepSpeed clips to a norm of 1 unless told not to; the paper does not clip
        "zero_optimization": {"stage": zero_stage},
        "steps_per_print": None,
    }
    engines = {name: _engine(net, make_optimizer(name, net, objective), config) for name, net in networks.items()}
    return Engines(engines, average, device)


def _engine(net: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
    import deepspeed

    engine, *_ = deepspeed.initialize(model=net, optimizer=optimizer, config=copy.deepcopy(config))
    return engine


def prepare_ops(use_gpu: bool = False) -> None:
    """Choose DeepSpeed's device and make sure that its CPU operator can be built: call before any engine is made.

    DeepSpeed compiles one C++ extension at first use, here into the environment's own folder. A build that was killed
    leaves a lock file on which every later process would wait for ever: one older than any build is removed.

    Raises:
        BadInput: no C++ compiler.
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


def check_compiler() -> None:
    """Raise BadInput where DeepSpeed could not build its CPU communication."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        raise BadInput("no C++ compiler found; DeepSpeed builds its CPU communication with one: install g++")


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


def mean_over_ranks(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Scalars averaged over the ranks, in one collective call. Every rank must call it."""
    values = torch.stack([value.detach().float().reshape(()) for value in metrics.values()])
    dist.all_reduce(values)
    return dict(zip(metrics, (values / dist.get_world_size()).tolist(), strict=True))


def save_engines(engines: Engines, folder: Path) -> None:
    """Write this rank's part of every engine's state below `folder`, a folder a network. Every rank must call it."""
    for name, engine in engines.by_name.items():
        target = folder / name
        (target / TAG).mkdir(parents=True, exist_ok=True)  # DeepSpeed makes it on rank 0 only
        engine.save_checkpoint(str(target), tag=TAG)


def load_engines(engines: Engines, folder: Path) -> None:
    """Restore every engine from a folder that save_engines filled. DeepSpeed unpickles: own runs only."""
    for name, engine in engines.by_name.items():
        path, _ = engine.load_checkpoint(str(folder / name), tag=TAG)
        assert path is not None, f"DeepSpeed found no state in {folder / name}"
