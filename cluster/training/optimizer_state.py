"""Adam's state as files that any number of ranks can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cluster.training.engines import SCALE, Engines, _sharded

MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam


def save_optimizers(engines: Engines, folder: Path) -> None:
    """Write this rank's part of the Adam state of every network into `folder`, without communication."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    folder.mkdir(parents=True, exist_ok=True)
    for name, engine in engines.by_name.items():
        state = {key: value.detach().cpu().contiguous() for key, value in _adam_part(engine, rank, world_size).items()}
        if name in engines.scales:
            scale = engines.scales[name]
            state[SCALE] = torch.tensor([scale.value, float(scale.good)], dtype=torch.float64)
        save_file(state, str(folder / f"{name}-{rank}-of-{world_size}.safetensors"))


def load_optimizers(engines: Engines, folder: Path) -> None:
    """Restore the Adam state from the parts of any number of ranks. Load the weights of the modules first."""
    for name, engine in engines.by_name.items():
        paths = sorted(folder.glob(f"{name}-*-of-*.safetensors"), key=lambda p: int(p.stem.split("-")[-3]))
        parts = [load_file(path) for path in paths]
        _set_adam(engine, {k: torch.cat([part[k] for part in parts]) for k in MOMENTS}, parts[0]["step"])
        if name in engines.scales and SCALE in parts[0]:
            value, good = parts[0][SCALE].tolist()
            engines.scales[name].value, engines.scales[name].good = value, int(good)


def _adam_part(engine: Any, rank: int, world_size: int) -> dict[str, Tensor]:
    """Return this rank's part (P/N,) of the flat Adam moments, of P parameters on N ranks, and the number of steps."""
    if _sharded(engine):
        (part,) = engine.optimizer.single_partition_of_fp32_groups
        return _adam_of(engine.optimizer.optimizer, part)
    states = [_adam_of(engine.optimizer, p) for p in engine.optimizer.param_groups[0]["params"]]
    flat = {key: torch.cat([state[key].reshape(-1) for state in states]) for key in MOMENTS}
    return {key: value.tensor_split(world_size)[rank] for key, value in flat.items()} | {"step": states[0]["step"]}


def _adam_of(adam: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Return the moments and the number of steps of a parameter; zeros before the first step."""
    state = adam.state.get(parameter) or {key: torch.zeros_like(parameter) for key in MOMENTS} | {
        "step": torch.zeros(())
    }
    return {key: state[key] for key in (*MOMENTS, "step")}


def _set_adam(engine: Any, flat: dict[str, Tensor], step: Tensor) -> None:
    """Set Adam's moments and number of steps; moments are flat over all parameters (P,), and padding is dropped."""
    parameters = [p for p in engine.module.parameters() if p.requires_grad]
    numel = sum(p.numel() for p in parameters)
    flat = {key: value[:numel] for key, value in flat.items()}
    if _sharded(engine):
        engine.optimizer.refresh_fp32_params()  # ZeRO's copy of the weights just loaded into the module
        (part,) = engine.optimizer.single_partition_of_fp32_groups
        padded = {k: nn.functional.pad(v, (0, part.numel() * dist.get_world_size() - numel)) for k, v in flat.items()}
        shard = {key: value.split(part.numel())[dist.get_rank()] for key, value in padded.items()}
        adam = engine.optimizer.optimizer
        moments = {key: value.to(part.device, copy=True) for key, value in shard.items()}
        adam.state[part] = moments | {"step": _count(step, part, adam)}
        return
    parts = {key: value.split([p.numel() for p in parameters]) for key, value in flat.items()}
    for index, parameter in enumerate(parameters):
        moments = {k: torch.empty_like(parameter).copy_(parts[k][index].view_as(parameter)) for k in MOMENTS}
        engine.optimizer.state[parameter] = moments | {"step": _count(step, parameter, engine.optimizer)}


def _count(step: Tensor, parameter: Tensor, adam: torch.optim.Optimizer) -> Tensor:
    """Copy the number of steps to the device that Adam requires: the parameter's if it is fused, else the CPU."""
    return step.to(parameter.device if adam.param_groups[0]["fused"] else "cpu", copy=True)
