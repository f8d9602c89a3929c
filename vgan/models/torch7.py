"""Networks that the published code trained, out of its Torch7 files (https://github.com/cvondrick/videogan).

A file holds one network, as a tree of Lua objects. Its layers that have weights are taken in the tree's order and
assigned by kind and shape; how they are nested does not matter, as the paper's layer tables say what they make up.

Nothing in a file is executed: `torchfile` keeps serialized Lua functions as bytes. It does trust the sizes and strides
that a file states, so they are checked here before a number is read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchfile
from numpy.lib.array_utils import byte_bounds
from torch import Tensor, nn

from vgan.errors import InputError
from vgan.models import make_networks
from vgan.models.config import ModelConfig

KINDS: dict[type[nn.Module], str] = {
    nn.Conv2d: "SpatialConvolution",
    nn.Conv3d: "VolumetricConvolution",
    nn.ConvTranspose2d: "SpatialFullConvolution",
    nn.ConvTranspose3d: "VolumetricFullConvolution",
    nn.BatchNorm2d: "SpatialBatchNormalization",
    nn.BatchNorm3d: "VolumetricBatchNormalization",
}
READER_FAULTS = (  # what torchfile raises where a file ends early or is none of its kind
    *(OSError, EOFError, struct.error, ValueError, TypeError, OverflowError, MemoryError, RecursionError),
    *(KeyError, AttributeError, NotImplementedError, torchfile.T7ReaderException),
)


@dataclass(frozen=True)
class Layer:
    """A layer with weights, in the names and layouts of PyTorch."""

    kind: str  # Torch7's class without its package, nn or cudnn
    tensors: dict[str, Tensor]  # weight and bias, of batch norm also running_mean and running_var; float32
    eps: float | None  # of batch norm

    def __str__(self) -> str:
        return f"{self.kind} {'x'.join(map(str, self.tensors['weight'].shape))}"


def read_networks(path: str | Path) -> tuple[ModelConfig, dict[str, nn.Module]]:
    """The network in a .t7 file, in eval mode, as generator or discriminator, and the settings its shapes tell.

    Raises:
        InputError: no such file, or no network of main.lua or main_conditional.lua; names the first layer that is odd.
    """
    layers = _read_layers(Path(path))
    try:
        name, config = _recognize(layers)
    except (IndexError, ValueError) as fault:
        raise InputError(f"{str(path)!r} is not one of the published networks: {fault}") from fault
    network = make_networks(config)[name]
    _assign(network, layers, str(path))
    return config, {name: network.eval()}


def _read_layers(path: Path) -> list[Layer]:
    """The layers with weights of a file, in the order of its tree."""
    try:
        with path.open("rb") as file:
            # Lists would be told from other tables by comparing their entries, which fails for tables of tensors.
            root = torchfile.T7Reader(file, use_list_heuristic=False).read_obj()
        return [_layer(module) for module in _modules(root, set())]
    except READER_FAULTS as fault:
        raise InputError(
            f"cannot read {str(path)!r} as a network of Torch7: {fault or type(fault).__name__}"
        ) from fault


def _modules(module: Any, seen: set[int]) -> Iterator[torchfile.TorchObject]:
    """The modules with weights of a tree, each once, even if a broken file holds one in itself."""
    if not isinstance(module, torchfile.TorchObject) or id(module) in seen:
        return
    seen.add(id(module))
    children = module["modules"]
    if children:
        for number in sorted(children):
            yield from _modules(children[number], seen)
    elif module["weight"] is not None:
        yield module


def _layer(module: torchfile.TorchObject) -> Layer:
    kind = module.torch_typename().decode().rpartition(".")[2]
    tensors = {name: _tensor(module[name]) for name in ("weight", "bias")}
    if "BatchNormalization" in kind:
        tensors["running_mean"] = _tensor(module["running_mean"])
        if module["running_var"] is not None:
            tensors["running_var"] = _tensor(module["running_var"])
        else:  # of 2015: what is called the deviation is its inverse, with eps in it
            tensors["running_var"] = _tensor(module["running_std"]) ** -2 - module["eps"]
        return Layer(kind, tensors, module["eps"])
    if kind == "VolumetricFullConvolution" and _is_old(module, tuple(tensors["weight"].shape[:2])):
        tensors["weight"] = tensors["weight"].transpose(0, 1)
    return Layer(kind, tensors, None)


def _is_old(module: torchfile.TorchObject, planes: tuple[int, ...]) -> bool:
    """Whether a transposed convolution keeps its output's planes first, as Torch7 did until it had adjW (2016)."""
    inward, outward = module["nInputPlane"], module["nOutputPlane"]
    return module["adjW"] is None if inward == outward else planes == (outward, inward)


def _tensor(value: Any) -> Tensor:
    """A float32 copy. Raises ValueError for what is no tensor, or one that reaches beyond its own storage."""
    if not isinstance(value, np.ndarray):
        raise ValueError("a layer lacks one of its tensors")
    owner: Any = value
    while getattr(owner, "base", None) is not None:
        owner = owner.base
    inside, outside = byte_bounds(value), byte_bounds(owner)
    if inside[0] < outside[0] or inside[1] > outside[1] or value.size > owner.size:
        raise ValueError("a tensor is longer than its storage")
    return torch.from_numpy(np.array(value, np.float32))


def _recognize(layers: list[Layer]) -> tuple[str, ModelConfig]:
    """Which network the layers make up, and its settings by their shapes.

    Raises:
        IndexError, ValueError: none.
    """
    shapes = {kind: [tuple(a.tensors["weight"].shape) for a in layers if a.kind == kind] for kind in KINDS.values()}
    if shapes["VolumetricFullConvolution"]:
        cin, cout, time, height, _ = shapes["VolumetricFullConvolution"][0]
        if shapes["SpatialConvolution"]:  # only the future model begins with an image; its sides are the published 64
            base = shapes["SpatialConvolution"][0][0] // 2
            return "generator", ModelConfig(
                architecture="future", future_encoder="reference", base_width=base, num_frames=16 * time
            )
        return "generator", ModelConfig(base_width=cout // 8, z_size=cin, num_frames=16 * time, size=16 * height)
    if shapes["VolumetricConvolution"]:
        _, _, time, height, _ = shapes["VolumetricConvolution"][-1]
        base = shapes["VolumetricConvolution"][0][0]
        return "discriminator", ModelConfig(base_width=base, num_frames=16 * time, size=16 * height)
    raise ValueError("it has no volumetric convolutions")


def _assign(network: nn.Module, layers: list[Layer], path: str) -> None:
    """Copy each layer into the first of the network's that it fits and that is still free; none may be left over."""
    free = [(name, layer) for name, layer in network.named_modules() if _kind(layer)]
    for number, found in enumerate(layers, 1):
        fitting = [place for place in free if _fits(found, place[1])]
        if not fitting:
            raise InputError(
                f"{path!r} is not one of the published networks: layer {number}, {found}, has no place in it"
            )
        fitting[0][1].load_state_dict(found.tensors, strict=False)  # a batch norm's counter is PyTorch's alone
        free.remove(fitting[0])
    if free:
        name, layer = free[0]
        raise InputError(f"{path!r} is not one of the published networks: no {_kind(layer)} for {name}")


def _fits(found: Layer, layer: nn.Module) -> bool:
    wanted = {k: v.shape for k, v in layer.state_dict().items() if k != "num_batches_tracked"}
    shapes = {k: v.shape for k, v in found.tensors.items()}
    eps = getattr(layer, "eps", None)
    same_eps = eps is None or (isinstance(found.eps, float) and np.isclose(found.eps, eps))
    return found.kind == _kind(layer) and shapes == wanted and same_eps


def _kind(layer: nn.Module) -> str:
    """Torch7's name for a layer; "" if it has no weights."""
    return next((name for kind, name in KINDS.items() if isinstance(layer, kind)), "")
