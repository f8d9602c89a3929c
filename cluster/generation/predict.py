"""Prediction of the future of images, and its error on a dataset."""

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
from cluster.sources.config import OWN_URLS
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
from vgan.video.decoding.isolated_decoder import Decoder
from vgan.video.image_strips import is_strip
from vgan.video.quality_filters import first_violation
from vgan.viz.panels import forecast_panels

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
BATCH_CLIPS = 256  # clips predicted at once
MAX_ROWS = 16  # futures below each other in one video: encoders limit the height


@dataclass(frozen=True)
class PredictionInput:
    """Image to predict from, with the true clip if the input is a video."""

    name: str
    image: np.ndarray  # (H, W, 3) uint8
    truth: np.ndarray | None  # (T, size, size, 3) uint8, starting with the image


def predict(config: PredictConfig) -> None:
    """Predict futures, write the videos, and print the table of errors.

    Raises:
        InputError: no readable input, or the checkpoint is not a future model or does not fit the dataset.
    """
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
    """Write one video per input, and one of all inputs; print the errors of inputs that are videos."""
    shape = {"num_frames": model.config.num_frames, "size": model.config.size}
    video = replace(config.video, clip=replace(config.video.clip, **shape))
    rows: list[np.ndarray] = []
    pairs, number = [], -1  # true and predicted clips
    for number, item in enumerate(_read_all(config.images, video)):
        clips = model.predict(item.image[None])
        row = _panels(item, clips)
        write_media(row, row[-1], join_url(out, f"future-{number:04d}"), config.format, config.fps)
        rows = [*rows, row][:MAX_ROWS]
        if item.truth is not None:
            pairs.append((item.truth, clips.video[0]))
        print(f"  future-{number:04d}  {item.name}{'' if item.truth is None else ', with the true future'}", flush=True)
    if not rows:
        raise InputError(f"none of images={config.images} could be read")
    width = max(row.shape[2] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, 0), (0, width - row.shape[2]), (0, 0)), constant_values=255) for row in rows]
    sheet = np.concatenate(padded, axis=1)
    write_media(sheet, sheet[-1], join_url(out, "all"), config.format, config.fps)
    print(f"{number + 1} futures -> {out}; all.* shows the first {len(rows)}")
    if pairs:
        truth, predicted = (np.stack(clips) for clips in zip(*pairs, strict=True))
        predictions = {"model": predicted, "copy the frame": copy_first_frame(truth)}
        print(f"errors on {len(pairs)} videos, frames 2 to {truth.shape[1]}:")
        print(error_table({name: forecast_errors(truth, clips) for name, clips in predictions.items()}))


def _read_all(urls: list[str], video: VideoConfig) -> Iterator[PredictionInput]:
    """Yield every readable input; print the reason for each other one."""
    with Decoder(video.decode) as decoder:
        for source in _sources(urls):
            try:
                with local_copy(source, OWN_URLS) as path:
                    yield _read(path, source.source_id, video, decoder)
            except VideoError as error:
                print(f"  {source.source_id}: skipped, {error.reason} ({error.detail})", flush=True)


def _sources(urls: list[str]) -> list[Source]:
    """List the images and videos at URLs of files or folders."""
    sources = []
    for url in map(absolute_url, urls):
        if Path(url).suffix.lower() in IMAGES | VIDEO_SUFFIXES:
            sources.append(Source(uri=url, source_id=url.rpartition("/")[2]))
        else:
            sources += list_folder(url, IMAGES | VIDEO_SUFFIXES)[0]
    if not sources:
        raise InputError(f"no image or video in images={urls}")
    return sources


def _read(path: Path, name: str, video: VideoConfig, decoder: Decoder) -> PredictionInput:
    """Read the first clip of a video that passes the filters, else the first frame of the file.

    Raises:
        VideoError: no frame can be decoded.
    """
    if Path(name).suffix.lower() not in IMAGES or is_strip(path):
        for item in extract_clips(decoder.frames(path), video):
            if isinstance(item, Clip) and first_violation(item.evidence, video.filters) is None:
                return PredictionInput(name, item.frames[0], item.frames)
    first = next(iter(decoder.frames(path)), None)
    if first is None:
        raise VideoError("decode", "no_frames", "no frame could be decoded")
    return PredictionInput(name, first.image, None)


def _panels(item: PredictionInput, clips: GeneratedClips) -> np.ndarray:
    assert clips.mask is not None  # future models have two streams
    return forecast_panels(item.image, clips.video[0], clips.mask[0], item.truth, scale=2)


def _predict_dataset(config: PredictConfig, model: Model, source: Checkpoint | None, out: str) -> None:
    """Print the errors on a dataset and write them to errors.json; warn if it shares videos with the training set."""
    url = absolute_url(config.data)
    manifest = read_manifest(url)
    truth, sources = _clips(url, manifest, model, config.num_clips)
    predictions = {"model": _predict_in_batches(model, truth), "copy the frame": copy_first_frame(truth)}
    training_set = None if source is None else find_training_manifest(source)
    if source is not None and training_set is not None:
        clips, training_sources = _clips(source.dataset_url, training_set, model, config.num_clips)
        shared = len(sources & training_sources)
        if training_set.digest == manifest.digest or shared:
            print(f"warning: {shared} of the {len(sources)} videos of data= are in the training set: not held out")
        predictions["mean future"] = mean_future(truth, mean_change_prediction(clips))
    else:
        print(
            "the training set is unknown or has changed: no mean future, and data= is not checked for training videos"
        )
    errors = {name: forecast_errors(truth, clips) for name, clips in predictions.items()}
    protocol = f"mse_frames2-{truth.shape[1]}_{len(truth)}clips_{manifest.digest[:8]}"
    print(f"{protocol} (dataset {config.data}):\n{error_table(errors)}")
    table = {name: {"mean": error.mean, "by_frame": error.by_frame.tolist()} for name, error in errors.items()}
    write_bytes(join_url(out, "errors.json"), json.dumps({"protocol": protocol, "mse": table}).encode())


def _clips(url: str, manifest: Manifest, model: Model, num: int) -> tuple[np.ndarray, set[str]]:
    """Return the first `num` clips (N, T, H, W, 3) uint8 of a (shuffled) dataset, and the videos of all its clips."""
    require_matching_shape(model.config, manifest.clip, url, "set another data=")
    sources = set(read_clips(url, manifest, columns=["source_id"])["source_id"].to_pylist())
    needed = 1 + int(np.searchsorted(np.cumsum([shard.rows for shard in manifest.shards]), num))
    table = read_clips(url, replace(manifest, shards=manifest.shards[:needed]), columns=["frames"])
    return decode_frames(table["frames"].slice(0, num), manifest.clip), sources


def _predict_in_batches(model: Model, truth: np.ndarray) -> np.ndarray:
    """Predict clips (N, T, H, W, 3) uint8 from the first frames of `truth`, of the same shape."""
    with progress_bar(total=len(truth), unit="clip", desc="predict") as bar:
        parts = []
        for start in range(0, len(truth), BATCH_CLIPS):
            parts.append(model.predict(truth[start : start + BATCH_CLIPS, 0]).video)
            bar.update(len(parts[-1]))
    return np.concatenate(parts)
