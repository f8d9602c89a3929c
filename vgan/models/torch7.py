"""Import of networks from Torch7 files of the published code (https://github.com/cvondrick/videogan).

A file contains one network as a tree of Lua objects. The layers with weights are read in the order of the tree and
assigned by class and shape; their nesting is ignored.

Nothing in a file is executed: `torchfile` returns serialized Lua functions as bytes. It does not validate the sizes and
strides that a file states, so they are checked here before any element is read.
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
from vgan.models.config import ModelConfig
from vgan.models.factory import make_networks

KINDS: dict[type[nn.Module], str] = {
    nn.Conv2d: "SpatialConvolution",
    nn.Conv3d: "VolumetricConvolution",
    nn.ConvTranspose2d: "SpatialFullConvolution",
    nn.ConvTranspose3d: "VolumetricFullConvolution",
    nn.BatchNorm2d: "SpatialBatchNormalization",
    nn.BatchNorm3d: "VolumetricBatchNormalization",
}
READER_FAULTS = (  # exceptions of torchfile for a truncated file or another format
    *(OSError, EOFError, struct.error, ValueError, TypeError, OverflowError, MemoryError, RecursionError),
    *(KeyError, AttributeError, NotImplementedError, torchfile.T7ReaderException),
)


@dataclass(frozen=True)
class Layer:
    """A layer with weights, with the tensor names and layouts of PyTorch."""

    kind: str  # Torch7 class without its package (nn or cudnn)
    tensors: dict[str, Tensor]  # float32 weight and bias; for batch norm also running_mean and running_var
    eps: float | None  # for batch norm only

    def __str__(self) -> str:
        return f"{self.kind} {'x'.join(map(str, self.tensors['weight'].shape))}"


def read_networks(path: str | Path) -> tuple[ModelConfig, dict[str, nn.Module]]:
    """Read the network in a .t7 file, and derive its settings from the shapes of its layers.

    Returns:
        The settings, and the network in eval mode under its name, generator or discriminator.

    Raises:
        InputError: the file does not exist, or is not a network of main.lua or main_conditional.lua; the message names
            the first layer that does not match.
    """
    layers = _read_layers(Path(path))
    try:
        name, config = _recognize(layers)
    except (IndexError, ValueError) as error:
        raise InputError(f"{str(path)!r} is not one of the published networks: {error}") from error
    network = make_networks(config)[name]
    _assign(network, layers, str(path))
    return config, {name: network.eval()}


def _read_layers(path: Path) -> list[Layer]:
    """Read the layers with weights of a file, in the order of its tree."""
    try:
        with path.open("rb") as file:
            # The heuristic compares the entries of a table to detect lists, which fails for tables of tensors.
            root = torchfile.T7Reader(file, use_list_heuristic=False).read_obj()
        return [_convert_layer(module) for module in _weighted_modules(root, set())]
    except READER_FAULTS as error:
        raise InputError(f"cannot read {str(path)!r} as a Torch7 network: {error or type(error).__name__}") from error


def _weighted_modules(module: Any, visited: set[int]) -> Iterator[torchfile.TorchObject]:
    """Yield the modules with weights of a tree, each once, even if a corrupt file contains a cycle."""
    if not isinstance(module, torchfile.TorchObject) or id(module) in visited:
        return
    visited.add(id(module))
    children = module["modules"]
    if children:
        for number in sorted(children):
            yield from _weighted_modules(children[number], visited)
    elif module["weight"] is not None:
        yield module


def _convert_layer(module: torchfile.TorchObject) -> Layer:
    """Convert a Torch7 module to the names and layouts of PyTorch."""
    kind = module.torch_typename().decode().rpartition(".")[2]
    tensors = {name: _copy_tensor(module[name]) for name in ("weight", "bias")}
    if "BatchNormalization" in kind:
        tensors["running_mean"] = _copy_tensor(module["running_mean"])
        if module["running_var"] is not None:
            tensors["running_var"] = _copy_tensor(module["running_var"])
        else:  # versions of 2015: running_std is the inverse of the standard deviation, including eps
            tensors["running_var"] = _copy_tensor(module["running_std"]) ** -2 - module["eps"]
        return Layer(kind, tensors, module["eps"])
    if kind == "VolumetricFullConvolution" and _has_output_planes_first(module, tuple(tensors["weight"].shape[:2])):
        tensors["weight"] = tensors["weight"].transpose(0, 1)
    return Layer(kind, tensors, None)


def _has_output_planes_first(module: torchfile.TorchObject, planes: tuple[int, ...]) -> bool:
    """Return True if the weight of a transposed convolution is (out, in, ...), as before Torch7 added adjW in 2016."""
    cin, cout = module["nInputPlane"], module["nOutputPlane"]
    return module["adjW"] is None if cin == cout else planes == (cout, cin)


def _copy_tensor(value: Any) -> Tensor:
    """Copy a tensor of a file as float32.

    Raises:
        ValueError: the value is not a tensor, or its strides reach beyond its storage.
    """
    if not isinstance(value, np.ndarray):
        raise ValueError("a layer lacks one of its tensors")
    owner: Any = value
    while getattr(owner, "base", None) is not None:
        owner = owner.base
    tensor_bounds, storage_bounds = byte_bounds(value), byte_bounds(owner)
    exceeds = tensor_bounds[0] < storage_bounds[0] or tensor_bounds[1] > storage_bounds[1]
    if exceeds or value.size > owner.size:
        raise ValueError("a tensor reaches beyond its storage")
    return torch.from_numpy(np.array(value, np.float32))


def _recognize(layers: list[Layer]) -> tuple[str, ModelConfig]:
    """Identify the network from the classes of its layers, and derive its settings from their shapes.

    Returns:
        generator or discriminator, and the settings.

    Raises:
        IndexError: there are too few layers.
        ValueError: there are no volumetric convolutions, or the settings are out of bounds.
    """
    shapes = {
        kind: [tuple(layer.tensors["weight"].shape) for layer in layers if layer.kind == kind]
        for kind in KINDS.values()
    }
    if shapes["VolumetricFullConvolution"]:
        cin, cout, time, height, _ = shapes["VolumetricFullConvolution"][0]
        if shapes["SpatialConvolution"]:  # only the future model has an encoder of images, published for 64 pixels
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
    """Copy each layer into the first unassigned layer of the network that matches it.

    Raises:
        InputError: a layer of the file or of the network has no match.
    """
    unassigned = [(name, layer) for name, layer in network.named_modules() if _torch7_class(layer)]
    for number, stored in enumerate(layers, 1):
        matches = [(name, layer) for name, layer in unassigned if _matches(stored, layer)]
        if not matches:
            raise InputError(
                f"{path!r} is not one of the published networks: layer {number}, {stored}, matches no layer"
            )
        matches[0][1].load_state_dict(stored.tensors, strict=False)  # Torch7 has no num_batches_tracked
        unassigned.remove(matches[0])
    if unassigned:
        name, layer = unassigned[0]
        raise InputError(f"{path!r} is not one of the published networks: no {_torch7_class(layer)} for {name}")


def _matches(stored: Layer, layer: nn.Module) -> bool:
    """Return True if class, shapes and eps of a stored layer are those of a layer of the network."""
    expected = {k: v.shape for k, v in layer.state_dict().items() if k != "num_batches_tracked"}
    shapes = {k: v.shape for k, v in stored.tensors.items()}
    eps = getattr(layer, "eps", None)
    same_eps = eps is None or (isinstance(stored.eps, float) and np.isclose(stored.eps, eps))
    return stored.kind == _torch7_class(layer) and shapes == expected and same_eps


def _torch7_class(layer: nn.Module) -> str:
    """Return the name of the Torch7 class of a layer; empty if the layer has no weights."""
    return next((name for cls, name in KINDS.items() if isinstance(layer, cls)), "")
