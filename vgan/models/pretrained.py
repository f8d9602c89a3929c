"""Files of trained models: loading, saving and generating clips. Nothing is unpickled.

    <folder>/model.json                 settings of the networks, under the key "model"
             generator.safetensors      weights of the generator
             discriminator.safetensors  weights of the discriminator, if the model has one
             mixture.safetensors        autoencoder: distribution of codes (vgan/models/gaussian_mixture.py)

Training checkpoints are read as well: state.json in place of model.json, and tensors in weights/, among them
generator_ema, the moving average, which is preferred. So are .t7 files of the published code (vgan/models/torch7.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vgan.errors import InputError
from vgan.models import gaussian_mixture
from vgan.models.config import ModelConfig
from vgan.models.factory import make_networks
from vgan.models.gaussian_mixture import LatentMixture
from vgan.models.generator import GeneratorOutput
from vgan.renamed_keys import SETTINGS_VERSION, upgrade
from vgan.video.config import StabilizeConfig
from vgan.video.normalize import denormalize_clips, normalize_clips
from vgan.video.stabilization.geometry import IDENTITY
from vgan.video.stabilization.rendering import downscale, render

MODEL, STATE, WEIGHTS, MIXTURE = "model.json", "state.json", "weights", "mixture.safetensors"
BATCH = 16  # clips per forward pass: 1 GB at base 64


class GeneratedClips(NamedTuple):
    """Generated clips as pixel values; all streams except the video are None for one-stream models."""

    video: np.ndarray  # (N, T, H, W, 3) uint8
    foreground: np.ndarray | None  # (N, T, H, W, 3) uint8
    mask: np.ndarray | None  # (N, T, H, W) float32 in [0, 1]
    background: np.ndarray | None  # (N, 1, H, W, 3) uint8


@dataclass(frozen=True)
class Model:
    """Trained networks in eval mode. The generated clips are a pure function of the weights and the input."""

    config: ModelConfig
    generator: nn.Module | None
    discriminator: nn.Module | None = None
    mixture: LatentMixture | None = None  # distribution of the codes of an autoencoder

    def sample(self, num: int, seed: int = 0) -> GeneratedClips:
        """Generate `num` clips from noise (paper section 2.2), or from the mixture of an autoencoder (section 3.2).

        Raises:
            InputError: the model is a future model, is an autoencoder without a mixture or has no generator, or num
                is below 1.
        """
        return self.decode(self.sample_latents(num, seed))

    def sample_latents(self, num: int, seed: int = 0) -> np.ndarray:
        """Sample the codes (num, Z) float32 that `sample` decodes: normal noise, or from an autoencoder's mixture.

        Raises:
            InputError: the model is an autoencoder without a mixture, or num is below 1.
        """
        if num < 1:
            raise InputError(f"num must be at least 1, got {num}")
        if self.config.architecture == "autoencoder":
            if self.mixture is None:
                raise InputError(
                    "the autoencoder has no mixture to sample from: fit one to its codes "
                    "(vgan.models.gaussian_mixture.fit_mixture)"
                )
            return gaussian_mixture.sample(self.mixture, num, seed)
        return torch.randn(num, self.config.z_size, generator=torch.Generator().manual_seed(seed)).numpy()

    def decode(self, codes: np.ndarray) -> GeneratedClips:
        """Generate clips from codes (N, Z) float32: noise, or the result of `encode`.

        Raises:
            InputError: the codes have another shape or type, it is a future model, or it has no generator.
        """
        if self.config.architecture == "future":
            raise InputError("a future model generates clips from images: use predict")
        _check_array("codes", codes, np.float32, (self.config.z_size,))
        G = self._generator()
        return _generate(
            G.get_submodule("decoder") if self.config.architecture == "autoencoder" else G, torch.tensor(codes)
        )

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Encode clips (N, T, H, W, 3) uint8 as codes (N, Z) float32 by an autoencoder (paper section 3.2).

        Raises:
            InputError: the clips have another shape or type, or the model is not an autoencoder.
        """
        if self.config.architecture != "autoencoder":
            raise InputError(f"only an autoencoder encodes clips, not a {self.config.architecture} model")
        size = self.config.size
        _check_array("frames", frames, np.uint8, (self.config.num_frames, size, size, 3))
        A: Any = self._generator()
        with torch.no_grad():
            codes = [A.encode(normalize_clips(part.to(_device(A)))) for part in torch.tensor(frames).split(BATCH)]
        return torch.cat(codes).float().cpu().numpy()

    def predict(self, images: np.ndarray) -> GeneratedClips:
        """Generate the future of images (N, H, W, 3) uint8 of any size by a future model (paper section 3.4).

        Images are resized by their short side and cropped to the center square, like the clips of a dataset.

        Raises:
            InputError: the images have another shape or type, the model is of another kind, or it has no generator.
        """
        if self.config.architecture != "future":
            raise InputError(f"only a future model predicts, not a {self.config.architecture} model: use sample")
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not images.size:
            raise InputError(f"images must be (N, H, W, 3) uint8, got {images.shape} {images.dtype}")
        size = self.config.size
        resized = downscale(images, max(StabilizeConfig().size, size))
        squares, _ = render(resized, np.tile(IDENTITY, (len(images), 1, 1)), size)
        return _generate(self._generator(), normalize_clips(torch.from_numpy(squares)[:, None])[:, :, 0])

    def _generator(self) -> nn.Module:
        """Return the generator, or raise InputError if the weights have none."""
        if self.generator is None:
            raise InputError("the model has no generator weights, only a discriminator: give a model with a generator")
        return self.generator


def load(path: str | Path, *, ema: bool = True, device: torch.device | str = "cpu") -> Model:
    """Load a model from a local checkpoint (step_*), an exported folder, or a .t7 file of the published code.

    Args:
        path: path of the folder or file.
        ema: load the moving average of the generator if there is one.
        device: device of the networks, e.g. cpu or cuda.

    Raises:
        InputError: the path has no model, or the weights do not match the settings.
    """
    path = Path(path)
    if path.suffix == ".t7":
        from vgan.models.torch7 import read_networks  # imported here because only .t7 files need its reader

        config, networks = read_networks(path)
        model = Model(config, networks.get("generator"), networks.get("discriminator"))
    else:
        model = load_model_from(lambda name: (path / name).read_bytes(), str(path), ema=ema)
    for network in (model.generator, model.discriminator):
        if network is not None:
            network.to(device)
    return model


def load_model_from(read: Callable[[str], bytes], origin: str, *, ema: bool = True) -> Model:
    """Load a model from a folder on any storage.

    Args:
        read: returns the bytes of a file by its path in the folder, or raises FileNotFoundError or NotADirectoryError.
        origin: path or URL of the folder, for error messages.
        ema: load the moving average of the generator if there is one.

    Raises:
        InputError: the folder has no model, or the weights do not match the settings.
    """

    def read_optional(name: str) -> bytes | None:
        try:
            return read(name)
        except (FileNotFoundError, NotADirectoryError):
            return None

    exported = read_optional(MODEL)
    settings, prefix = (read_optional(STATE), f"{WEIGHTS}/") if exported is None else (exported, "")
    if settings is None:
        raise InputError(f"no model at {origin!r}: give a step_* folder of a run, an exported folder or a .t7 file")
    config = _read_config(settings, origin)
    networks: dict[str, nn.Module] = {}
    for name, network in make_networks(config).items():
        for stored in [f"{name}_ema", name] if ema else [name]:
            path = f"{prefix}{stored}.safetensors"
            data = read_optional(path)
            if data is not None:
                load_into(network, read_tensors(data, f"{origin}/{path}"), f"{origin}/{path}")
                networks[name] = network.eval()
                break
    if not networks:
        raise InputError(f"no weights at {origin!r}: {prefix}generator.safetensors is missing")
    mixture_data = read_optional(MIXTURE)
    mixture = None if mixture_data is None else gaussian_mixture.read_mixture(mixture_data, f"{origin}/{MIXTURE}")
    return Model(config, networks.get("generator"), networks.get("discriminator"), mixture)


def save(
    folder: str | Path, config: ModelConfig, networks: Mapping[str, nn.Module], mixture: LatentMixture | None = None
) -> None:
    """Export networks by name (generator, discriminator), and a mixture, into a local folder that `load` reads."""
    folder = Path(folder)
    write_weights(folder, networks)
    if mixture is not None:
        (folder / MIXTURE).write_bytes(gaussian_mixture.mixture_bytes(mixture))
    content = {"model": asdict(config), "settings_version": SETTINGS_VERSION}
    (folder / MODEL).write_text(json.dumps(content, indent=2) + "\n")


# ---- tensors -----------------------------------------------------------------------------------------------------


def write_weights(folder: Path, networks: Mapping[str, nn.Module]) -> None:
    """Write <name>.safetensors for each network into a local folder, which is created if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, network in networks.items():
        tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
        safetensors.torch.save_file(tensors, str(folder / f"{name}.safetensors"))


def read_tensors(data: bytes, origin: str) -> dict[str, Tensor]:
    """Read tensors by name from the bytes of a safetensors file.

    Raises:
        InputError: the bytes are not a safetensors file.
    """
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise InputError(f"cannot read weights from {origin!r}: {error}") from error


def load_into(network: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Copy tensors into a network; their names and shapes must be those of its state dict.

    Raises:
        InputError: a name or shape differs; the message names the first one.
    """
    expected = {k: v.shape for k, v in network.state_dict().items()}
    stored = {k: v.shape for k, v in tensors.items()}
    if expected != stored:
        name = next(k for k in sorted(expected.keys() | stored.keys()) if expected.get(k) != stored.get(k))
        raise InputError(
            f"{origin!r} does not fit the network: "
            f"{name} is {_shape_text(stored.get(name))} in the file, {_shape_text(expected.get(name))} in the network"
        )
    network.load_state_dict(tensors)


def model_config_from(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """Create the settings of the networks from the values stored at `origin`.

    Raises:
        InputError: a setting is unknown or out of bounds.
    """
    try:
        return ModelConfig(**upgrade(dict(values), "model."))
    except (TypeError, ValueError) as error:
        raise InputError(f"{origin!r} describes a model that this version cannot create: {error}") from error


def _read_config(data: bytes, origin: str) -> ModelConfig:
    """Read the settings of the networks from the bytes of model.json or state.json."""
    try:
        values = json.loads(data)["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{origin!r} does not describe a model: {error}") from error
    return model_config_from(values, origin)


def _shape_text(shape: torch.Size | None) -> str:
    """Format a shape for an error message."""
    return "missing" if shape is None else "x".join(map(str, shape)) or "a scalar"


# ---- generation --------------------------------------------------------------------------------------------------


@torch.no_grad()
def _generate(network: nn.Module, inputs: Tensor) -> GeneratedClips:
    """Generate clips by a network in eval mode from inputs (N, ...) float32, BATCH at a time."""
    parts = [_to_clips(network(batch.to(_device(network)))) for batch in inputs.split(BATCH)]
    streams: list[Any] = [None if arrays[0] is None else np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    return GeneratedClips(*streams)


def _to_clips(streams: GeneratorOutput) -> GeneratedClips:
    """Convert the output of a generator to pixel values."""
    video, foreground, mask, background = streams
    pixels: list[Any] = [
        None if stream is None else denormalize_clips(stream).cpu().numpy()
        for stream in (video, foreground, background)
    ]
    opacity = None if mask is None else mask[:, 0].float().cpu().numpy()
    return GeneratedClips(video=pixels[0], foreground=pixels[1], mask=opacity, background=pixels[2])


def _device(network: nn.Module) -> torch.device:
    """Return the device of a network's parameters."""
    return next(network.parameters()).device


def _check_array(name: str, array: np.ndarray, dtype: type, shape: tuple[int, ...]) -> None:
    """Raise InputError unless `array` is (N, *shape) of that dtype, N above 0."""
    if array.dtype != dtype or array.shape[1:] != shape or not len(array):
        expected = ", ".join(map(str, ("N", *shape)))
        raise InputError(f"{name} must be ({expected}) {np.dtype(dtype)}, got {array.shape} {array.dtype}")
