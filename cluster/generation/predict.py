"""Futures of still images and of a dataset's first frames."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cluster.checkpoints import store
from cluster.checkpoints.lineage import find_training_manifest, require_matching_shape
from cluster.checkpoints.store import Checkpoint
from cluster.dataset.manifest import Manifest, read_manifest
from cluster.dataset.shards import decode_frames, read_clips
from cluster.generation.config import PredictConfig
from cluster.observability.progress_bar import progress_bar
from cluster.runtime.provenance import save_settings
from cluster.sources.download import local_copy
from cluster.sources.manifest import VIDEO_SUFFIXES, Source, list_folder
from cluster.storage.files import make_writable_folder, write_bytes
from cluster.storage.media_files import write_media
from cluster.storage.urls import absolute_url, join_url
from vgan.errors import InputError, VideoError
from vgan.metrics.prediction_error import (
    copy_first_frame,
    error_table,
    forecast_errors,
    mean_change_prediction,
    mean_future,
)
from vgan.models.pretrained import GeneratedClips, Model
from vgan.options import require_options
from vgan.records import Clip
from vgan.video.clip_extraction import extract_clips
from vgan.video.config import VideoConfig
from vgan.video.image_strips import is_strip
from vgan.video.isolated_decoder import Decoder
from vgan.video.quality_filters import first_violation
from vgan.viz.panels import forecast_panels

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
TRUTH_CLIPS = 256  # predicted at once
SHOWN = 16  # futures below each other in one video: encoders have a largest height


@dataclass(frozen=True)
class PredictionInput:
    """An image to predict from, and the clip that it began, if that is known."""

    name: str
    image: np.ndarray  # (H, W, 3) uint8
    truth: np.ndarray | None  # (T, size, size, 3) uint8


def predict(config: PredictConfig) -> None:
    """Predict, write the videos, and print the table of errors."""
    require_options(config, "checkpoint", "out")
    if not config.images and not config.data:
        raise InputError("nothing to predict: give images= or data=")
    model, source = store.open_model(absolute_url(config.checkpoint))
    if model.config.architecture != "future" or model.generator is None:
        raise InputError(
            f"checkpoint={config.checkpoint!r} is a {model.config.architecture} model: "
            "train one with model.architecture=future"
        )
    if torch.cuda.is_available():
        model.generator.cuda()
    out = absolute_url(config.out)
    make_writable_folder(out)
    if config.images:
        _predict_images(config, model, out)
    if config.data:
        _predict_dataset(config, model, source, out)
    save_settings(config, join_url(out, "settings.yaml"))


def _predict_images(config: PredictConfig, model: Model, out: str) -> None:
    """A video an input, and one of all."""
    shape = {"num_frames": model.config.num_frames, "size": model.config.size}
    video = replace(config.video, clip=replace(config.video.clip, **shape))
    rows: list[np.ndarray] = []
    known, number = [], -1
    for number, given in enumerate(_read_all(config.images, video)):
        clips = model.predict(given.image[None])
        row = _panels(given, clips)
        write_media(row, row[-1], join_url(out, f"future-{number:04d}"), config.format, config.fps)
        rows = [*rows, row][:SHOWN]
        if given.truth is not None:
            known.append((given.truth, clips.video[0]))
        print(f"  future-{number:04d}  {given.name}{'' if given.truth is None else ', with what happened'}", flush=True)
    if not rows:
        raise InputError(f"none of images={config.images} could be read")
    width = max(row.shape[2] for row in rows)
    wide = [np.pad(row, ((0, 0), (0, 0), (0, width - row.shape[2]), (0, 0)), constant_values=255) for row in rows]
    together = np.concatenate(wide, axis=1)
    write_media(together, together[-1], join_url(out, "all"), config.format, config.fps)
    print(f"{number + 1} futures -> {out}; all.* shows the first {len(rows)}")
    if known:
        truth, predicted = (np.stack(side) for side in zip(*known, strict=True))
        guesses = {"model": predicted, "copy the frame": copy_first_frame(truth)}
        print(f"errors over {len(known)} of these, frames 2 to {truth.shape[1]}:")
        print(error_table({name: forecast_errors(truth, clips) for name, clips in guesses.items()}))


def _read_all(words: list[str], video: VideoConfig) -> Iterator[PredictionInput]:
    """Every input that can be read; of any other, why not."""
    with Decoder(video.decode) as decoder:
        for source in _sources(words):
            try:
                with local_copy(source) as path:
                    yield _read(path, source.source_id, video, decoder)
            except VideoError as fault:
                print(f"  {source.source_id}: left out, {fault.reason} ({fault.detail})", flush=True)


def _sources(words: list[str]) -> list[Source]:
    sources = []
    for word in words:
        url = absolute_url(word)
        if Path(url).suffix.lower() in IMAGES | VIDEO_SUFFIXES:
            sources.append(Source(uri=url, source_id=url.rpartition("/")[2]))
        else:
            sources += list_folder(url, IMAGES | VIDEO_SUFFIXES)[0]
    if not sources:
        raise InputError(f"no image or video in images={words}")
    return sources


def _read(path: Path, name: str, video: VideoConfig, decoder: Decoder) -> PredictionInput:
    """The first clip of a video that training would take, prepared as for it; else the first frame.

    Raises:
        VideoError: nothing can be decoded.
    """
    if Path(name).suffix.lower() not in IMAGES or is_strip(path):
        for item in extract_clips(decoder.frames(path), video):
            if isinstance(item, Clip) and first_violation(item.evidence, video.filters) is None:
                return PredictionInput(name, item.frames[0], item.frames)
    first = next(iter(decoder.frames(path)), None)
    if first is None:
        raise VideoError("decode", "no_frames", "not one frame could be decoded")
    return PredictionInput(name, first.image, None)


def _panels(given: PredictionInput, clips: GeneratedClips) -> np.ndarray:
    assert clips.mask is not None  # future models have two streams
    return forecast_panels(given.image, clips.video[0], clips.mask[0], given.truth, scale=2)


def _predict_dataset(config: PredictConfig, model: Model, source: Checkpoint | None, out: str) -> None:
    """The table of errors over clips that were not trained on, printed and written as errors.json."""
    url = absolute_url(config.data)
    manifest = read_manifest(url)
    truth, sources = _clips(url, manifest, model, config.num_clips)
    guesses = {"model": _predicted(model, truth), "copy the frame": copy_first_frame(truth)}
    trained = None if source is None else find_training_manifest(source)
    if source is not None and trained is not None:
        clips, seen = _clips(source.dataset_url, trained, model, config.num_clips)
        both = len(sources & seen)
        if trained.digest == manifest.digest or both:
            print(f"warning: {both} of the {len(sources)} videos of data= were trained on: this is no held-out error")
        guesses["mean future"] = mean_future(truth, mean_change_prediction(clips))
    else:
        print("the dataset of training is not known, or no longer the same: no mean future, and no look whether")
        print("videos of data= were trained on")
    errors = {name: forecast_errors(truth, clips) for name, clips in guesses.items()}
    protocol = f"mse_frames2-{truth.shape[1]}_{len(truth)}clips_{manifest.digest[:8]}"
    print(f"{protocol} (dataset {config.data}):\n{error_table(errors)}")
    table = {name: {"mean": found.mean, "by_frame": found.by_frame.tolist()} for name, found in errors.items()}
    write_bytes(join_url(out, "errors.json"), json.dumps({"protocol": protocol, "mse": table}).encode())


def _clips(url: str, manifest: Manifest, model: Model, num: int) -> tuple[np.ndarray, set[str]]:
    """The first `num` clips of a (shuffled) dataset, (N, T, H, W, 3) uint8, and the videos of all its clips."""
    require_matching_shape(model.config, manifest.clip, url, "set another data=")
    sources = set(read_clips(url, manifest, columns=["source_id"])["source_id"].to_pylist())
    needed = 1 + int(np.searchsorted(np.cumsum([shard.rows for shard in manifest.shards]), num))
    table = read_clips(url, replace(manifest, shards=manifest.shards[:needed]), columns=["frames"])
    return decode_frames(table["frames"].slice(0, num), manifest.clip), sources


def _predicted(model: Model, truth: np.ndarray) -> np.ndarray:
    with progress_bar(total=len(truth), unit="clip", desc="predict") as bar:
        parts = []
        for start in range(0, len(truth), TRUTH_CLIPS):
            parts.append(model.predict(truth[start : start + TRUTH_CLIPS, 0]).video)
            bar.update(len(parts[-1]))
    return np.concatenate(parts)
