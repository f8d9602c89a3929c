"""Models as files: any trained network in two lines, without unpickling a thing.

    <folder>/model.json             the networks' settings, under the key "model"
             generator.safetensors  and discriminator.safetensors, where there is one
             mixture.safetensors    of an autoencoder, what its codes are sampled from (vgan/models/gaussian_mixture.py)

A checkpoint of training is read as well: state.json in place of model.json, its tensors in weights/, and among them
generator_ema, the moving average, which is preferred. So are the published code's .t7 files (vgan/models/torch7.py).
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
from vgan.models import gaussian_mixture, make_networks
from vgan.models.config import ModelConfig
from vgan.models.gaussian_mixture import LatentMixture
from vgan.models.generator import GeneratorOutput
from vgan.renamed_keys import upgrade
from vgan.video.config import StabilizeConfig
from vgan.video.normalize import denormalize_clips, normalize_clips
from vgan.video.registration import IDENTITY
from vgan.video.stabilize import downscale, render

MODEL, STATE, WEIGHTS, MIXTURE = "model.json", "state.json", "weights", "mixture.safetensors"
BATCH = 16  # clips drawn at once: 1 GB at base 64


class GeneratedClips(NamedTuple):
    """Drawn clips as files and eyes want them; one-stream models draw the video alone, the rest is then None."""

    video: np.ndarray  # (N, T, H, W, 3) uint8
    foreground: np.ndarray | None  # (N, T, H, W, 3) uint8
    mask: np.ndarray | None  # (N, T, H, W) float32 in [0, 1]
    background: np.ndarray | None  # (N, 1, H, W, 3) uint8


@dataclass(frozen=True)
class Model:
    """Trained networks in eval mode. What is drawn is a pure function of them and of what is given."""

    config: ModelConfig
    generator: nn.Module | None
    discriminator: nn.Module | None = None
    mixture: LatentMixture | None = None  # of an autoencoder

    def sample(self, num: int, seed: int = 0) -> GeneratedClips:
        """Draw `num` clips from noise, an autoencoder's from its mixture.

        Raises:
            InputError: a future model, an autoencoder without a mixture, no generator, or num below 1.
        """
        return self.decode(self.codes(num, seed))

    def codes(self, num: int, seed: int = 0) -> np.ndarray:
        """What `sample` draws from: codes (num, Z) float32, noise or of an autoencoder's mixture.

        Raises:
            InputError: an autoencoder without a mixture, or num below 1.
        """
        if num < 1:
            raise InputError(f"num must be at least 1, got {num}")
        if self.config.architecture == "autoencoder":
            if self.mixture is None:
                raise InputError(
                    "an autoencoder draws from a mixture: fit one to its codes "
                    "(vgan.models.gaussian_mixture.fit_mixture)"
                )
            return gaussian_mixture.sample(self.mixture, num, seed)
        return torch.randn(num, self.config.z_size, generator=torch.Generator().manual_seed(seed)).numpy()

    def decode(self, codes: np.ndarray) -> GeneratedClips:
        """Draw clips from codes (N, Z) float32: noise, or what `encode` gave.

        Raises:
            InputError: codes of another shape, a future model, or no generator.
        """
        if self.config.architecture == "future":
            raise InputError("a future model draws from images: use predict")
        _check("codes", codes, np.float32, (self.config.z_size,))
        G = self._generator()
        return _draw(
            G.get_submodule("decoder") if self.config.architecture == "autoencoder" else G, torch.tensor(codes)
        )

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Codes (N, Z) float32 of clips (N, T, H, W, 3) uint8, by an autoencoder.

        Raises:
            InputError: clips of another shape, or not an autoencoder.
        """
        if self.config.architecture != "autoencoder":
            raise InputError(f"only an autoencoder encodes, and this model has architecture={self.config.architecture}")
        size = self.config.size
        _check("frames", frames, np.uint8, (self.config.num_frames, size, size, 3))
        A: Any = self._generator()
        with torch.no_grad():
            codes = [A.encode(normalize_clips(part.to(_device(A)))) for part in torch.tensor(frames).split(BATCH)]
        return torch.cat(codes).float().cpu().numpy()

    def predict(self, images: np.ndarray) -> GeneratedClips:
        """Draw the future of images (N, H, W, 3) uint8 of any size, by a future model.

        As clips are when they are prepared, images are reduced (or enlarged) by their short side and cropped to the
        square in their centre.

        Raises:
            InputError: images of another shape or type, another kind of model, or no generator.
        """
        if self.config.architecture != "future":
            raise InputError(
                f"only a future model predicts, and this one has architecture={self.config.architecture}: use sample"
            )
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not images.size:
            raise InputError(f"images must be (N, H, W, 3) uint8, got {images.shape} {images.dtype}")
        size = self.config.size
        working = downscale(images, max(StabilizeConfig().size, size))
        squares, _ = render(working, np.tile(IDENTITY, (len(images), 1, 1)), size)
        return _draw(self._generator(), normalize_clips(torch.from_numpy(squares)[:, None])[:, :, 0])

    def _generator(self) -> nn.Module:
        if self.generator is None:
            raise InputError("there is no generator among these weights, only a discriminator")
        return self.generator


def load(path: str | Path, *, ema: bool = True, device: torch.device | str = "cpu") -> Model:
    """A ready model from a local checkpoint (step_*), an exported folder, or a .t7 file of the published code.

    Args:
        path: of the folder or file.
        ema: take the generator's moving average where there is one.
        device: where the networks shall run.

    Raises:
        InputError: nothing of the kind there, or weights that do not fit the settings beside them.
    """
    path = Path(path)
    if path.suffix == ".t7":
        from vgan.models.torch7 import read_networks  # its reader is needed for such files alone

        config, networks = read_networks(path)
        model = Model(config, networks.get("generator"), networks.get("discriminator"))
    else:
        model = load_model_from(lambda name: (path / name).read_bytes(), str(path), ema=ema)
    for network in (model.generator, model.discriminator):
        if network is not None:
            network.to(device)
    return model


def load_model_from(read: Callable[[str], bytes], origin: str, *, ema: bool = True) -> Model:
    """A ready model from a folder, wherever that is.

    Args:
        read: gives the bytes of a file by its path in the folder; raises FileNotFoundError or NotADirectoryError.
        origin: the folder's name for people.
        ema: take the generator's moving average where there is one.

    Raises:
        InputError: as `load`.
    """

    def find(name: str) -> bytes | None:
        try:
            return read(name)
        except (FileNotFoundError, NotADirectoryError):
            return None

    exported = find(MODEL)
    settings, below = (find(STATE), f"{WEIGHTS}/") if exported is None else (exported, "")
    if settings is None:
        raise InputError(f"no model at {origin!r}: give a step_* folder of a run, an exported folder or a .t7 file")
    config = _read_config(settings, origin)
    networks: dict[str, nn.Module] = {}
    for name, network in make_networks(config).items():
        for stored in [f"{name}_ema", name] if ema else [name]:
            path = f"{below}{stored}.safetensors"
            data = find(path)
            if data is not None:
                load_into(network, read_tensors(data, f"{origin}/{path}"), f"{origin}/{path}")
                networks[name] = network.eval()
                break
    if not networks:
        raise InputError(f"no weights at {origin!r}: {below}generator.safetensors is missing")
    kept = find(MIXTURE)
    mixture = None if kept is None else gaussian_mixture.read_mixture(kept, f"{origin}/{MIXTURE}")
    return Model(config, networks.get("generator"), networks.get("discriminator"), mixture)


def save(
    folder: str | Path, config: ModelConfig, networks: Mapping[str, nn.Module], mixture: LatentMixture | None = None
) -> None:
    """Export networks by name (generator, discriminator) into a local folder, for `load`."""
    folder = Path(folder)
    write_weights(folder, networks)
    if mixture is not None:
        (folder / MIXTURE).write_bytes(gaussian_mixture.mixture_bytes(mixture))
    (folder / MODEL).write_text(json.dumps({"model": asdict(config)}, indent=2) + "\n")


# ---- tensors -----------------------------------------------------------------------------------------------------


def write_weights(folder: Path, networks: Mapping[str, nn.Module]) -> None:
    """Write <name>.safetensors for each network into a local folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, network in networks.items():
        tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
        safetensors.torch.save_file(tensors, str(folder / f"{name}.safetensors"))


def read_tensors(data: bytes, origin: str) -> dict[str, Tensor]:
    """Tensors by name out of a safetensors file's bytes.

    Raises:
        InputError: it is none.
    """
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as fault:
        raise InputError(f"cannot read weights from {origin!r}: {fault}") from fault


def load_into(network: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Copy tensors into a network, whose state dict they must equal in names and shapes.

    Raises:
        InputError: they do not; names the first one that differs.
    """
    wanted = {k: v.shape for k, v in network.state_dict().items()}
    found = {k: v.shape for k, v in tensors.items()}
    if wanted != found:
        odd = next(k for k in sorted(wanted.keys() | found.keys()) if wanted.get(k) != found.get(k))
        raise InputError(
            f"{origin!r} does not fit the network: "
            f"{odd} is {_shape(found.get(odd))} in the file, {_shape(wanted.get(odd))} here"
        )
    network.load_state_dict(tensors)


def model_config_from(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """The networks' settings as they were stored at `origin`.

    Raises:
        InputError: an unknown one, or one out of bounds.
    """
    try:
        return ModelConfig(**upgrade(dict(values), "model."))
    except (TypeError, ValueError) as fault:
        raise InputError(f"{origin!r} describes a model that this version cannot make: {fault}") from fault


def _read_config(data: bytes, origin: str) -> ModelConfig:
    try:
        values = json.loads(data)["model"]
    except (ValueError, KeyError, TypeError) as fault:
        raise InputError(f"{origin!r} does not describe a model: {fault}") from fault
    return model_config_from(values, origin)


def _shape(shape: torch.Size | None) -> str:
    return "missing" if shape is None else "x".join(map(str, shape)) or "a scalar"


# ---- drawing -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def _draw(network: nn.Module, given: Tensor) -> GeneratedClips:
    """What a network in eval mode draws from `given` (N, ...), float32."""
    parts = [_to_clips(network(batch.to(_device(network)))) for batch in given.split(BATCH)]
    joined: list[Any] = [None if part[0] is None else np.concatenate(part) for part in zip(*parts, strict=True)]
    return GeneratedClips(*joined)


def _to_clips(streams: GeneratorOutput) -> GeneratedClips:
    video, foreground, mask, background = streams
    pixels: list[Any] = [
        None if stream is None else denormalize_clips(stream).cpu().numpy()
        for stream in (video, foreground, background)
    ]
    opacity = None if mask is None else mask[:, 0].float().cpu().numpy()
    return GeneratedClips(video=pixels[0], foreground=pixels[1], mask=opacity, background=pixels[2])


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _check(name: str, array: np.ndarray, dtype: type, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape[1:] != shape or not len(array):
        wanted = ", ".join(map(str, ("N", *shape)))
        raise InputError(f"{name} must be ({wanted}) {np.dtype(dtype)}, got {array.shape} {array.dtype}")
