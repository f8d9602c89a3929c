"""Folder of a human study: trials with their lineage, and one video per trial with both clips side by side.

study.json          all trials with the side of each clip: for the server and the report, never sent to raters
clips/00000.mp4     both clips of trial 0 in one video; all files have the same length in bytes
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cluster.dataset.manifest import MANIFEST, read_manifest
from cluster.dataset.shards import read_frames
from cluster.sources.config import OWN_URLS
from cluster.sources.download import local_copy
from cluster.sources.manifest import VIDEO_SUFFIXES, Source
from cluster.storage.files import exists, list_files, read_bytes, write_bytes, write_json
from cluster.storage.urls import join_url
from vgan.errors import InputError, VideoError
from vgan.renamed_keys import upgrade
from vgan.study.trials import (
    SCRAMBLED,
    STATIC,
    Study,
    StudyDesign,
    Trial,
    TrialClip,
    scrambled_clip,
    side_by_side,
    static_clip,
)
from vgan.video.config import DecodeConfig
from vgan.video.decoding.decode import frames
from vgan.video.encode import FREE_BOX, padded_mp4, write_mp4

STUDY, CLIPS = "study.json", "clips"
SCHEMA_VERSION = 1
OVERVIEWS = frozenset({"grid", "panels"})  # files of jobs.generate that show several clips
BLOCK = 8  # pixels, side of the blocks of scrambled clips


@dataclass(frozen=True, kw_only=True)
class StoredStudy:
    """Study read from its folder."""

    study: Study
    digest: str  # sha256 of study.json, stored with each vote so that votes are never matched to other trials


def list_clips(folder: str, categories: Sequence[str]) -> dict[str, list[str]]:
    """List the clip sources by category: of FOLDER/CATEGORY each, or of the folder itself as category "all".

    A folder holds videos or is a dataset, whose clips are URL#ROW.

    Raises:
        InputError: a folder has no clips.
    """
    urls = {name: join_url(folder, name) for name in categories} or {"all": folder}
    sources_of = {name: _sources(url) for name, url in urls.items()}
    for name, sources in sources_of.items():
        if not sources:
            raise InputError(f"no clips in {urls[name]!r}: give videos, or a dataset made by `python -m jobs.prepare`")
    return sources_of


def _sources(url: str) -> list[str]:
    if exists(join_url(url, MANIFEST)):
        rows = sum(shard.rows for shard in read_manifest(url).shards)
        return [f"{url}#{row}" for row in range(rows)]
    files = list_files(url)
    return [f for f in files if Path(f).suffix.lower() in VIDEO_SUFFIXES | {".gif"} and Path(f).stem not in OVERVIEWS]


def write_study(study: Study, url: str, *, num_frames: int, fps: float) -> StoredStudy:
    """Encode every trial and write the folder; study.json is written last and marks it complete.

    Args:
        study: trials to encode.
        url: URL of the folder.
        num_frames: frames per clip; longer clips are cut.
        fps: frames per second of the videos.

    Raises:
        InputError: a clip cannot be read, is too short, or differs in size from the others.
    """
    reader = _Reader(num_frames, fps)
    with tempfile.TemporaryDirectory(prefix="study-") as scratch:
        paths = [Path(scratch) / clip_filename(number) for number in range(len(study.trials))]
        for trial, path in zip(study.trials, paths, strict=True):
            sides = reader.frames(trial.first), reader.frames(trial.second)
            write_mp4(side_by_side(sides[trial.left], sides[1 - trial.left]), path, fps)
        # Padding is an MP4 box of at least 8 bytes, so the common size leaves room for one in the largest file.
        size = max(path.stat().st_size for path in paths) + FREE_BOX.size
        for path in paths:
            write_bytes(join_url(url, CLIPS, path.name), padded_mp4(path.read_bytes(), size))
    record = {"schema_version": SCHEMA_VERSION, "num_frames": num_frames, "fps": fps, **asdict(study)}
    write_json(join_url(url, STUDY), record)
    return read_study(url)


def read_study(url: str) -> StoredStudy:
    """Read the study in a folder.

    Raises:
        InputError: there is no study, or it has another schema version.
    """
    path = join_url(url, STUDY)
    if not exists(path):
        raise InputError(f"no study at {url!r}: {STUDY} is missing; make it with `python -m jobs.study action=make`")
    data = read_bytes(path)
    value = json.loads(data)
    if value.get("schema_version") != SCHEMA_VERSION:
        version = value.get("schema_version")
        raise InputError(f"{path!r} has schema version {version}, this code reads {SCHEMA_VERSION}: make it again")
    study = Study(
        methods=tuple(value["methods"]),
        categories=tuple(value["categories"]),
        plan=StudyDesign(**upgrade(value["plan"], "plan.")),
        trials=tuple(_trial(trial) for trial in value["trials"]),
    )
    return StoredStudy(study=study, digest=hashlib.sha256(data).hexdigest())


def clip_filename(number: int) -> str:
    """Return the file name of a trial; trials are in random order, so the name reveals nothing."""
    return f"{number:05d}.mp4"


def _trial(value: Mapping[str, Any]) -> Trial:
    return Trial(**{**value, "first": TrialClip(**value["first"]), "second": TrialClip(**value["second"])})


class _Reader:
    """Reader of clips as raters see them, all of one length and size."""

    def __init__(self, num_frames: int, fps: float) -> None:
        self.num_frames, self.fps = num_frames, fps
        self.shape: tuple[int, ...] | None = None
        self.first = ""
        self.manifest = lru_cache(maxsize=8)(read_manifest)

    def frames(self, clip: TrialClip) -> np.ndarray:
        """Read the frames (T, H, W, 3) uint8 of one side."""
        pixels = self._stored(clip.source) if "#" in clip.source else _decoded(clip.source)
        if len(pixels) < self.num_frames:
            raise InputError(f"{clip.source!r} has {len(pixels)} frames, fewer than num_frames={self.num_frames}")
        pixels = pixels[: self.num_frames]
        if self.shape is None:
            self.shape, self.first = pixels.shape, clip.source
        if pixels.shape != self.shape or pixels.shape[1] % BLOCK or pixels.shape[2] % BLOCK:
            size = f"{pixels.shape[2]}x{pixels.shape[1]}"
            message = f"{clip.source!r} is {size} pixels: all clips must have the same size, a multiple of {BLOCK}"
            raise InputError(f"{message}, as {self.first!r} is {self.shape[2]}x{self.shape[1]}")
        if clip.method == STATIC:
            return static_clip(pixels)
        return scrambled_clip(pixels, clip.index, BLOCK) if clip.method == SCRAMBLED else pixels

    def _stored(self, source: str) -> np.ndarray:
        """Read a clip of a dataset and re-encode it, so that real and generated clips show the same codec artifacts."""
        url, _, row = source.rpartition("#")
        pixels = read_frames(url, self.manifest(url), np.array([int(row)]))[0]
        with tempfile.TemporaryDirectory(prefix="clip-") as scratch:
            path = Path(scratch) / "clip.mp4"
            write_mp4(pixels, path, self.fps)
            return _decoded(str(path))


def _decoded(url: str) -> np.ndarray:
    try:
        with local_copy(Source(source_id=url, uri=url), OWN_URLS) as path:
            return np.stack([frame.image for frame in frames(path, DecodeConfig(), native=True)])
    except VideoError as error:
        raise InputError(f"cannot read {url!r}: {error}") from error
