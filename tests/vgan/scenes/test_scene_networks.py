"""Scene classifiers: shapes, loading of the published weight formats, and rejection of untrusted files."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vgan.errors import InputError
from vgan.scenes.labels import places365_labels
from vgan.scenes.networks import ResNet, SqueezeNet, load_scene_network
from vgan.scenes.preprocess import scene_view
from vgan.scenes.scoring import SceneClassifier

FIRES = [(64, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128), (256, 48, 192), (384, 48, 192), (384, 64, 256)]
FIRES += [(512, 64, 256)]


def saved(value: Any, *, old: bool = False) -> bytes:
    """Serialize with torch.save in the current format or, if `old`, the one before 2020."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def checkpoint(network: ResNet) -> dict[str, Any]:
    """Return a checkpoint as the Places365 training script of 2017 does: DataParallel names, no batch counters."""
    state = OrderedDict((f"module.{k}", v) for k, v in network.state_dict().items() if "num_batches" not in k)
    return {"epoch": 90, "arch": "resnet18", "state_dict": state, "best_prec1": torch.tensor(54.6)}


def pictures(num: int = 2) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num, 3, 224, 224)).astype(np.float32))


@torch.inference_mode()
def logits(network: torch.nn.Module) -> Tensor:
    return network(pictures())


# torchvision's networks have 11,176,512 and 23,508,032 parameters before the last layer, which has 365 outputs here.
@pytest.mark.parametrize(
    ("blocks", "deep", "parameters"), [((2, 2, 2, 2), False, 11_363_757), ((3, 4, 6, 3), True, 24_255_917)]
)
def test_resnets_have_the_published_sizes(blocks: tuple[int, ...], deep: bool, parameters: int) -> None:
    network = ResNet(blocks, deep=deep).eval()
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert logits(network).shape == (2, 365)


def of_python_2(content: bytes) -> bytes:
    """Convert a torch.save file of before 2020 to Python 2 form: its five pickles contain byte strings."""
    source, out = io.BytesIO(content), b""
    for _ in range(5):
        start = source.tell()
        ops = [(op.name, argument, position) for op, argument, position in pickletools.genops(source)]
        ends = [position for *_, position in ops[1:]] + [source.tell()]
        assert start == ops[0][2]
        for (name, argument, position), end in zip(ops, ends, strict=True):
            if name == "BINUNICODE":
                out += b"U" + bytes([len(argument)]) + argument.encode()
            else:
                out += content[position:end]
    return out + source.read()


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_open_network_reads_a_places365_checkpoint(deep: bool, old: bool) -> None:
    network = ResNet((1, 2, 1, 1), deep=deep).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
    opened = load_scene_network(saved(checkpoint(network), old=old), "x")
    assert not opened.training
    assert torch.equal(logits(opened), logits(network))
    assert torch.equal(logits(load_scene_network(saved(network.state_dict()), "x")), logits(network))
    if old:
        older = of_python_2(saved(checkpoint(network), old=True))
        assert b"X\x0a\x00\x00\x00state_dict" not in older
        assert b"U\x0astate_dict" in older
        assert torch.equal(logits(load_scene_network(older, "x")), logits(network))


def lasagne_arrays(rng: np.random.Generator) -> list[np.ndarray]:
    """Draw 152 small random arrays of the SqueezeNet's shapes."""
    shapes = [(64, 3, 3, 3)]
    for cin, squeezed, expanded in FIRES:
        shapes += [(squeezed, cin, 1, 1), (expanded, squeezed, 1, 1), (expanded, squeezed, 3, 3)]
    arrays = []
    for shape in [*shapes, (365, 512, 1, 1)]:
        arrays += [rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape), rng.normal(0, 0.1, shape[0])]
        if shape[0] != 365:
            arrays += [rng.normal(0, 0.1, shape[0]), rng.uniform(0.5, 1.5, shape[0])]
            arrays += [rng.normal(0, 0.1, shape[0]), rng.uniform(0.5, 1.5, shape[0])]
    return [a.astype(np.float32) for a in arrays]


def lasagne_logits(arrays: list[np.ndarray], rgb: Tensor) -> Tensor:
    """Compute logits as Lasagne does, layer by layer: true convolutions, each with batch norm, on BGR."""
    values = iter([torch.from_numpy(a) for a in arrays])

    def unit(x: Tensor, stride: int = 1, last: bool = False) -> Tensor:
        weight, bias = next(values), next(values)
        x = F.conv2d(x, weight.flip(2, 3), bias, stride, padding=weight.shape[2] // 2 if stride == 1 else 0)
        if not last:
            beta, gamma, mean, inv_std = (next(values)[:, None, None] for _ in range(4))
            x = (x - mean) * (gamma * inv_std) + beta
        return F.leaky_relu(x, 0.55)

    bgr = rgb.flip(1)
    x = unit((bgr - torch.tensor([104.051, 112.514, 116.676])[:, None, None]) / 255, stride=2)
    for number in range(len(FIRES)):
        if number in (0, 2, 4):
            x = F.max_pool2d(x, 3, 2)
        x = unit(x)
        x = torch.cat([unit(x), unit(x)], 1)
    return unit(x, last=True).mean((2, 3))


def test_squeezenet_folds_batch_norms_and_flips_kernels_and_color_channels() -> None:
    arrays = lasagne_arrays(np.random.default_rng(1))
    assert len(arrays) == 152
    opened = load_scene_network(pickle.dumps(arrays, 3), "x")
    assert isinstance(opened, SqueezeNet)
    expected = lasagne_logits(arrays, pictures())
    assert (logits(opened) - expected).abs().max() < 1e-4 * expected.abs().max()
    assert expected.std() > 0.1


class Trap:
    """Object that creates a folder when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("file_format", ["zip", "old", "arrays"])
def test_open_network_rejects_pickled_code_without_running_it(file_format: str, tmp_path: Path) -> None:
    trap = Trap(tmp_path / "sprung")
    content = (
        pickle.dumps([np.ones(1), trap])
        if file_format == "arrays"
        else saved({"state_dict": trap}, old=file_format == "old")
    )
    with pytest.raises(InputError, match=r"scene\.weights='w\.pth'"):
        load_scene_network(content, "w.pth")
    assert not list(tmp_path.iterdir())


def test_open_network_errors_name_the_problem() -> None:
    state = ResNet((1, 1, 1, 1), deep=False).state_dict()
    broken = {
        "cannot be read": saved(state)[:1000],
        "Ran out of input|cannot be read": b"",
        "not a state dict of a ResNet": saved({"weight": torch.ones(3)}),
        "365 outputs": saved(state | {"fc.weight": torch.ones(1000, 512), "fc.bias": torch.ones(1000)}),
        "unexpected tensor extra.weight": saved(state | {"extra.weight": torch.ones(1)}),
        "not the 152 float32 arrays": pickle.dumps([np.ones(3, np.float32)]),
    }
    for message, content in broken.items():
        with pytest.raises(InputError, match=message):
            load_scene_network(content, "w")


def test_places365_squeezenet_recognizes_mountains(shared: Path) -> None:
    folder = shared / "weights" / "places365_squeezenet"
    network = load_scene_network((folder / "squeezenet_weights_places365.params").read_bytes(), "x")
    picture = cv2.cvtColor(cv2.imread(str(folder / "mountains.jpg")), cv2.COLOR_BGR2RGB)
    (probabilities,) = SceneClassifier(network)([scene_view(picture)])
    assert probabilities.shape == (365,)
    assert abs(probabilities.sum() - 1) < 1e-4
    top_labels = [places365_labels()[i] for i in probabilities.argsort()[::-1][:5]]
    assert top_labels[0] == "mountain_path"
    assert {"mountain_snowy", "glacier"} <= set(top_labels)


def test_labels_are_in_the_published_order(shared: Path) -> None:
    published = (shared / "weights" / "places365_squeezenet" / "categories_places365.txt").read_text().splitlines()
    assert [f"/{label[0]}/{label} {n}" for n, label in enumerate(places365_labels())] == published
