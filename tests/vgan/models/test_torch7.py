"""Import of Torch7 files of the published code, with equal outputs of the networks."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import vgan
from vgan.errors import InputError
from vgan.models.config import ModelConfig
from vgan.models.factory import make_networks
from vgan.models.layers import HalvingConv3d
from vgan.models.torch7 import read_networks

MODEL = ModelConfig(base_width=2, z_size=5, num_frames=16, size=32)


# ---- a writer of .t7 files ---------------------------------------------------------------------------------------


class Module:
    """Torch7 object: class name and fields."""

    def __init__(self, name: str, **fields: Any) -> None:
        self.name, self.fields = name, fields


class View:
    """Tensor that is a part of a storage, as all weights of a network are after `getParameters` of Torch7."""

    def __init__(self, storage: np.ndarray, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride


class Writer:
    """Writer of the binary format of Torch7, little-endian, 8-byte longs: https://github.com/torch/torch7/blob/master/File.lua."""

    def __init__(self, tensor: str = "torch.FloatTensor") -> None:
        self.data, self.seen, self.kept = b"", dict[int, int](), list[Any]()
        self.tensor = tensor

    def write(self, value: Any) -> bytes:
        if value is None:
            self._ints(0)
        elif isinstance(value, bool):
            self._ints(5, int(value))
        elif isinstance(value, int | float):
            self._ints(1)
            self.data += struct.pack("<d", value)
        elif isinstance(value, str):
            self._ints(2)
            self._string(value)
        elif isinstance(value, dict):
            if self._begin(3, value):
                self._ints(len(value))
                for key, entry in value.items():
                    self.write(key)
                    self.write(entry)
        elif self._begin(4, value):
            self._object(value)
        return self.data

    def _object(self, value: Any) -> None:
        self._string("V 1")
        if isinstance(value, Module):
            self._string(value.name)
            self.write(value.fields)
        elif isinstance(value, View):
            self._string(self.tensor)
            self._ints(len(value.shape))
            self._longs(*value.shape, *value.stride, value.offset + 1)
            self.write(value.storage)
        else:
            self._string(self.tensor.replace("Tensor", "Storage"))
            self._longs(value.size)
            self.data += value.tobytes()

    def _begin(self, kind: int, value: Any) -> bool:
        """Write an object's type and number; return True if its content must follow."""
        new = id(value) not in self.seen
        self.kept.append(value)
        number = self.seen.setdefault(id(value), len(self.seen) + 1)
        self._ints(kind, number)
        return new

    def _string(self, value: str) -> None:
        self._ints(len(value))
        self.data += value.encode()

    def _ints(self, *values: int) -> None:
        self.data += struct.pack(f"<{len(values)}i", *values)

    def _longs(self, *values: int) -> None:
        self.data += struct.pack(f"<{len(values)}q", *values)


# ---- networks as the published code nests them -------------------------------------------------------------------

NAMES = {
    nn.Conv2d: "nn.SpatialConvolution",
    nn.Conv3d: "nn.VolumetricConvolution",
    HalvingConv3d: "nn.VolumetricConvolution",
    nn.ConvTranspose2d: "nn.SpatialFullConvolution",
    nn.ConvTranspose3d: "nn.VolumetricFullConvolution",
    nn.BatchNorm2d: "nn.SpatialBatchNormalization",
    nn.BatchNorm3d: "nn.VolumetricBatchNormalization",
}


def lively(name: str, config: ModelConfig) -> nn.Module:
    """Create a network with random tensors, including batch statistics."""
    torch.manual_seed(3)
    network = make_networks(config)[name].eval()
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in key else 0.3 * torch.randn_like(tensor))
    return network


def in_torch7(network: nn.Module) -> dict[nn.Module, Module]:
    """Convert each layer with weights to a Torch7 object, with all tensors in one storage."""
    layers = [layer for layer in network.modules() if type(layer) in NAMES]
    storage = np.concatenate([t.detach().numpy().ravel() for layer in layers for t in (layer.weight, layer.bias)])
    result, offset = {}, 0
    for layer in layers:
        fields: dict[str, Any] = {"train": True, "output": contiguous(np.zeros(0, np.float32))}
        for name in ("weight", "bias"):
            shape = tuple(getattr(layer, name).shape)
            fields[name] = View(storage, offset, shape, strides(shape))
            offset += int(np.prod(shape))
        if "BatchNorm" in type(layer).__name__:
            fields |= {name: contiguous(getattr(layer, name).numpy()) for name in ("running_mean", "running_var")}
            fields["eps"] = layer.eps
        else:
            fields |= {"nInputPlane": layer.in_channels, "nOutputPlane": layer.out_channels, "adjW": 0}
        result[layer] = Module(NAMES[type(layer)], **fields)
    return result


def contiguous(array: np.ndarray) -> View:
    return View(array.ravel().copy(), 0, array.shape, strides(array.shape))


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(np.prod(shape[n + 1 :])) for n in range(len(shape)))


def sequential(*modules: Module | str, kind: str = "nn.Sequential") -> Module:
    made = [Module(f"nn.{m}", inplace=True) if isinstance(m, str) else m for m in modules]
    return Module(kind, modules=dict(enumerate(made, 1)), train=True)


def table(*modules: Module | str) -> Module:
    return sequential(*modules, kind="nn.ConcatTable")


def chain(layers: Iterator[nn.Module] | list[nn.Module], made: dict[nn.Module, Module]) -> list[Module | str]:
    """Return a sequence of layers, with layers without weights between them."""
    return [entry for layer in layers for entry in (made[layer], "ReLU")]


def weighted(network: nn.Module) -> list[nn.Module]:
    return [layer for layer in network.modules() if type(layer) in NAMES]


def nested(network: Any, made: dict[nn.Module, Module]) -> Module:
    """Return the tree of main.lua's or main_conditional.lua's generator, or of a discriminator."""
    if not hasattr(network, "heads"):
        return sequential(*chain(weighted(network), made), "View")
    heads = table(
        sequential(made[network.heads.rgb], "Tanh"), sequential(made[network.heads.mask], "Sigmoid", "L1Penalty")
    )
    video = sequential("View", *chain([*weighted(network.stem), *weighted(network.trunk)], made), heads)
    still = sequential("View", *chain(weighted(network.background), made))
    encoder = [sequential(*chain(weighted(network.encoder), made))] if hasattr(network, "encoder") else []
    moving = sequential(table("SelectTable", sequential("SelectTable", "Squeeze", "Replicate")), "CMulTable")
    return sequential(*encoder, table(video, still), "FlattenTable", table(moving, moving), "CAddTable")


def write(path: Path, root: Any, tensor: str = "torch.FloatTensor") -> Path:
    path.write_bytes(Writer(tensor).write(root))
    return path


# ---- tests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", ["torch.FloatTensor", "torch.CudaTensor"])
def test_published_generator_draws_the_same_clips(tmp_path: Path, tensor: str) -> None:
    G = lively("generator", MODEL)
    path = write(tmp_path / "iter65000_net.t7", nested(G, in_torch7(G)), tensor)
    config, result = read_networks(path)
    assert config == MODEL
    assert set(result) == {"generator"}
    z = torch.randn(3, 5)
    with torch.no_grad():
        for ours, theirs in zip(G(z), result["generator"](z), strict=True):
            assert torch.equal(ours, theirs)
    assert vgan.load(path).sample(2).video.shape == (2, 16, 32, 32, 3)


def test_published_discriminator_gives_the_same_logits_in_the_same_order(tmp_path: Path) -> None:
    config = ModelConfig(
        base_width=2, num_frames=32, size=64
    )  # a discriminator's shapes do not determine z_size: the default
    D = lively("discriminator", config)
    result = read_networks(write(tmp_path / "netD.t7", nested(D, in_torch7(D))))
    assert result[0] == config
    video = torch.randn(2, 3, 32, 64, 64)
    with torch.no_grad():
        assert torch.equal(D(video), result[1]["discriminator"](video))
    with pytest.raises(InputError, match="only a discriminator"):
        vgan.load(tmp_path / "netD.t7").sample(1)


def test_published_future_generator_draws_the_same_clips(tmp_path: Path) -> None:
    config = ModelConfig(architecture="future", future_encoder="reference", base_width=2, num_frames=16)
    G = lively("generator", config)
    result = read_networks(write(tmp_path / "net.t7", nested(G, in_torch7(G))))
    assert result[0] == config
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(G(image).video, result[1]["generator"](image).video)


def test_heads_in_the_other_order_and_cudnn_layers_are_told_by_shape_and_kind(tmp_path: Path) -> None:
    G = lively("generator", MODEL)
    made = in_torch7(G)
    for module in made.values():
        module.name = module.name.replace("nn.", "cudnn.")
    made[G.heads.rgb], made[G.heads.mask] = made[G.heads.mask], made[G.heads.rgb]
    result = read_networks(write(tmp_path / "net.t7", nested(G, made)))[1]["generator"]
    z = torch.randn(2, 5)
    with torch.no_grad():
        assert torch.equal(G(z).video, result(z).video)


def test_layers_of_older_versions_of_torch7_are_converted(tmp_path: Path) -> None:
    G = lively("generator", MODEL)
    made = in_torch7(G)
    for layer, module in made.items():
        if isinstance(layer, nn.ConvTranspose3d):
            del module.fields["adjW"]
            module.fields["weight"] = contiguous(layer.weight.detach().numpy().swapaxes(0, 1))
        elif isinstance(layer, nn.BatchNorm3d):
            del module.fields["running_var"]
            module.fields["running_std"] = contiguous((layer.running_var + layer.eps).pow(-0.5).numpy())
    result = read_networks(write(tmp_path / "net.t7", nested(G, made)))[1]["generator"]
    z = torch.randn(2, 5)
    with torch.no_grad():
        torch.testing.assert_close(result(z).video, G(z).video, atol=1e-4, rtol=0)


def odd_layers(change: str) -> Module:
    """Return a generator's tree with one mistake."""
    G = lively("generator", MODEL)
    made = in_torch7(G)
    first, norm = weighted(G.trunk)[:2]
    if change == "shape":
        made[first].fields["weight"] = contiguous(np.zeros((16, 7, 4, 4, 4), np.float32))
    elif change == "extra":
        made[first] = sequential(made[first], Module("nn.Linear", **made[norm].fields))
    elif change == "missing":
        made[norm] = Module("nn.Identity")
    elif change == "eps":
        made[norm].fields["eps"] = 0.1
    elif change == "classes":
        D = lively("discriminator", MODEL)
        made = in_torch7(D)
        made[D.head].fields["weight"] = contiguous(np.zeros((101, 16, 1, 2, 2), np.float32))
        made[D.head].fields["bias"] = contiguous(np.zeros(101, np.float32))
        return nested(D, made)
    return nested(G, made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("shape", r"layer 3, VolumetricFullConvolution 16x7x4x4x4, matches no layer"),
        ("extra", r"layer 4, Linear 8, matches no layer"),
        ("missing", r"no VolumetricBatchNormalization for trunk\.0\.1"),
        ("eps", r"layer 4, VolumetricBatchNormalization 8, matches no layer"),
        ("classes", r"layer 8, VolumetricConvolution 101x16x1x2x2, matches no layer"),
    ],
)
def test_another_network_is_refused_by_its_first_odd_layer(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_networks(write(tmp_path / "net.t7", odd_layers(change)))
    assert f"{tmp_path}/net.t7" in str(caught.value)


@pytest.mark.parametrize("root", [None, 3.0, "net", {1: 2.0}, Module("nn.Sequential"), Module("nn.View", weight=1)])
def test_files_of_other_things_are_refused(tmp_path: Path, root: Any) -> None:
    with pytest.raises(InputError, match=r"net\.t7"):
        read_networks(write(tmp_path / "net.t7", root))


def test_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        vgan.load(tmp_path / "net.t7")


def test_tensor_that_claims_more_than_its_storage_is_refused_unread(tmp_path: Path) -> None:
    D = lively("discriminator", MODEL)
    made = in_torch7(D)
    strange = [((2,), (2**40,), 0), ((2,), (-(2**40),), 0), ((2**40,), (1,), 0), ((2**40,), (0,), 0), ((2,), (1,), 1)]
    for shape, stride, offset in strange:
        made[D.head].fields["bias"] = View(np.zeros(2, np.float32), offset, shape, stride)
        with pytest.raises(InputError, match=r"net\.t7"):
            read_networks(write(tmp_path / "net.t7", nested(D, made)))


def test_file_that_holds_itself_does_not_hang(tmp_path: Path) -> None:
    root = sequential("View")
    root.fields["modules"][2] = root
    with pytest.raises(InputError, match="no volumetric convolutions"):
        read_networks(write(tmp_path / "net.t7", root))


def test_broken_files_are_bad_input_wherever_they_break(tmp_path: Path) -> None:
    D = lively("discriminator", MODEL)
    data = Writer().write(nested(D, in_torch7(D)))
    path, rng = tmp_path / "net.t7", np.random.default_rng(0)
    for number in range(400):
        broken = bytearray(data[: rng.integers(len(data))] if number % 2 else data)
        for _ in range(0 if number % 2 else 3):
            broken[rng.integers(3000)] = rng.integers(256)  # the first bytes are mostly structure, not numbers
        path.write_bytes(broken)
        try:
            read_networks(path)
        except InputError:
            continue
        assert number % 2 == 0  # changed bytes may be irrelevant; truncated files never load
