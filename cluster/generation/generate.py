"""Generation of clips, grids and stream panels with a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from cluster.checkpoints import store
from cluster.checkpoints.lineage import require_matching_shape, training_manifest
from cluster.checkpoints.store import Checkpoint
from cluster.dataset.manifest import read_manifest
from cluster.evaluation.latent_codes import encode_dataset
from cluster.generation.config import GenerateConfig
from cluster.runtime.provenance import save_settings
from cluster.storage.files import exists, make_writable_folder, read_bytes, write_bytes
from cluster.storage.media_files import write_media
from cluster.storage.urls import absolute_url, join_url
from vgan.errors import InputError
from vgan.models import gaussian_mixture
from vgan.models.gaussian_mixture import LatentMixture
from vgan.models.pretrained import MIXTURE, GeneratedClips, Model
from vgan.options import require_options
from vgan.viz.panels import clips_panels, film_strip, sample_grid

PANEL_ROWS = 4  # clips whose streams are shown
GRID = 256  # maximum number of clips in the grid: encoders limit the height


def generate(config: GenerateConfig) -> None:
    """Generate clips and write the files into `config.out`.

    Raises:
        InputError: the checkpoint has no generator that samples noise, or an autoencoder's mixture cannot be fitted.
    """
    require_options(config, "checkpoint", "out")
    model, source = store.open_model(absolute_url(config.checkpoint), ema=config.ema)
    if model.config.architecture == "future":
        raise InputError(
            f"checkpoint={config.checkpoint!r} is a future model, which needs images: use `python -m jobs.predict`"
        )
    if model.generator is None:
        raise InputError(f"checkpoint={config.checkpoint!r} holds only a discriminator: give the file of the generator")
    if torch.cuda.is_available():
        model.generator.cuda()
    if model.config.architecture == "autoencoder":
        model = replace(model, mixture=_mixture(config, model, source))
    clips = model.sample(config.num_clips, config.seed)
    out = absolute_url(config.out)
    make_writable_folder(out)
    _write_all(clips, out, config)
    if model.mixture is not None:
        write_bytes(join_url(out, MIXTURE), gaussian_mixture.mixture_bytes(model.mixture))
    url = source.url if source else absolute_url(config.checkpoint)
    save_settings(replace(config, checkpoint=url), join_url(out, "settings.yaml"))  # the checkpoint itself, not its run
    step = f"step {source.step}" if source else config.checkpoint
    mask = "" if clips.mask is None else f", mask mean {clips.mask.mean():.2f}"
    print(f"{config.num_clips} clips from {step}{mask} -> {out}")


def _write_all(clips: GeneratedClips, out: str, config: GenerateConfig) -> None:
    strips = [film_strip(clip) for clip in clips.video]
    for index, (clip, row) in enumerate(zip(clips.video, strips, strict=True)):
        write_media(clip, row, join_url(out, f"sample-{index:04d}"), config.format, config.fps)
    write_media(
        sample_grid(clips.video[:GRID], scale=2),
        np.concatenate(strips[:GRID]),
        join_url(out, "grid"),
        config.format,
        config.fps,
    )
    if config.panels:
        panels = clips_panels(clips, PANEL_ROWS)
        write_media(panels, panels[len(panels) // 2], join_url(out, "panels"), config.format, config.fps)


def _mixture(config: GenerateConfig, model: Model, source: Checkpoint | None) -> LatentMixture:
    """Return the mixture for an autoencoder: the one of mixture=, the model's own, or a newly fitted one."""
    if config.mixture:
        url = absolute_url(config.mixture)
        url = url if url.endswith(".safetensors") else join_url(url, MIXTURE)
        if not exists(url):
            raise InputError(f"no mixture at mixture={config.mixture!r}: leave it empty to fit one")
        return gaussian_mixture.read_mixture(read_bytes(url), url)
    if model.mixture is not None and not config.data:
        return model.mixture
    if config.data:
        url = absolute_url(config.data)
        manifest = read_manifest(url)
        require_matching_shape(model.config, manifest.clip, url, "set another data=")
    elif source is None:
        raise InputError(f"checkpoint={config.checkpoint!r} does not record its training set: give data= or mixture=")
    else:
        url, manifest = source.dataset_url, training_manifest(model, source)
    codes = encode_dataset(model, url, manifest, config.mixture_clips, config.seed)
    if len(codes) < config.components:
        print(f"only {len(codes)} clips: the mixture has {len(codes)} components instead of {config.components}")
    return gaussian_mixture.fit_mixture(codes, config.components, config.seed)
