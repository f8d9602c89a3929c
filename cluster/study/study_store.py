"""A study's folder: the trials with their lineage, and one file a trial that shows both clips side by side.

study.json          every trial, which side is which: for the server and the report, never for raters
clips/00000.mp4     both clips of trial 0 in one video; all files have one length
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
from cluster.sources.download import local_copy
from cluster.sources.manifest import VIDEO_SUFFIXES, Source
from cluster.storage.files import exists, list_files, read_bytes, write_bytes, write_json
from cluster.storage.urls import join_url
from vgan.errors import InputError, VideoError
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
from vgan.video.decode import frames
from vgan.video.encode import FREE_BOX, padded_mp4, write_mp4

STUDY, CLIPS = "study.json", "clips"
SCHEMA_VERSION = 1
OVERVIEWS = frozenset({"grid", "panels"})  # files of jobs.generate that are no single clip
BLOCK = 8  # pixels, of what is scrambled


@dataclass(frozen=True, kw_only=True)
class StoredStudy:
    """A study as its folder holds it."""

    study: Study
    digest: str  # sha256 of all of it; votes carry it, so that they never meet other trials


def list_clips(folder: str, categories: Sequence[str]) -> dict[str, list[str]]:
    """Sources of the clips in a folder of videos, or a dataset, or of those in FOLDER/CATEGORY of each category.

    Raises:
        InputError: nothing there.
    """
    places = {name: join_url(folder, name) for name in categories} or {"all": folder}
    found = {name: _sources(url) for name, url in places.items()}
    for name, sources in found.items():
        if not sources:
            raise InputError(
                f"no clips in {places[name]!r}: give videos, or a dataset made by `python -m jobs.prepare`"
            )
    return found


def _sources(url: str) -> list[str]:
    if exists(join_url(url, MANIFEST)):
        rows = sum(shard.rows for shard in read_manifest(url).shards)
        return [f"{url}#{row}" for row in range(rows)]
    files = list_files(url)
    return [f for f in files if Path(f).suffix.lower() in VIDEO_SUFFIXES | {".gif"} and Path(f).stem not in OVERVIEWS]


def write_study(study: Study, url: str, *, num_frames: int, fps: float) -> StoredStudy:
    """Encode every trial and write the folder; study.json comes last and makes it a study.

    Raises:
        InputError: a clip that cannot be read, is too short, or of another size than the others.
    """
    reader = _Reader(num_frames, fps)
    with tempfile.TemporaryDirectory(prefix="study-") as scratch:
        paths = [Path(scratch) / clip_filename(number) for number in range(len(study.trials))]
        for trial, path in zip(study.trials, paths, strict=True):
            sides = reader.frames(trial.first), reader.frames(trial.second)
            write_mp4(side_by_side(sides[trial.left], sides[1 - trial.left]), path, fps)
        # A box needs 8 bytes at least, so that none fits into less.
        size = max(path.stat().st_size for path in paths) + FREE_BOX.size
        for path in paths:
            write_bytes(join_url(url, CLIPS, path.name), padded_mp4(path.read_bytes(), size))
    record = {"schema_version": SCHEMA_VERSION, "num_frames": num_frames, "fps": fps, **asdict(study)}
    write_json(join_url(url, STUDY), record)
    return read_study(url)


def read_study(url: str) -> StoredStudy:
    """The study in a folder.

    Raises:
        InputError: none, or one of another version.
    """
    path = join_url(url, STUDY)
    if not exists(path):
        raise InputError(f"no study at {url!r}: {STUDY} is missing; make it with `python -m jobs.study action=make`")
    data = read_bytes(path)
    value = json.loads(data)
    if value.get("schema_version") != SCHEMA_VERSION:
        found = value.get("schema_version")
        raise InputError(f"{path!r} has schema version {found}, this code reads {SCHEMA_VERSION}: make it again")
    study = Study(
        methods=tuple(value["methods"]),
        categories=tuple(value["categories"]),
        plan=StudyDesign(**value["plan"]),
        trials=tuple(_trial(trial) for trial in value["trials"]),
    )
    return StoredStudy(study=study, digest=hashlib.sha256(data).hexdigest())


def clip_filename(number: int) -> str:
    """The name of a trial's file; trials are in random order, so that it tells nothing."""
    return f"{number:05d}.mp4"


def _trial(value: Mapping[str, Any]) -> Trial:
    return Trial(**{**value, "first": TrialClip(**value["first"]), "second": TrialClip(**value["second"])})


class _Reader:
    """Reads clips as they are shown, all of one length and size."""

    def __init__(self, num_frames: int, fps: float) -> None:
        self.num_frames, self.fps = num_frames, fps
        self.shape: tuple[int, ...] | None = None
        self.first = ""
        self.manifest = lru_cache(maxsize=8)(read_manifest)

    def frames(self, clip: TrialClip) -> np.ndarray:
        """Frames (T, H, W, 3) uint8 of one side."""
        found = self._stored(clip.source) if "#" in clip.source else _decoded(clip.source)
        if len(found) < self.num_frames:
            raise InputError(f"{clip.source!r} has {len(found)} frames, fewer than num_frames={self.num_frames}")
        found = found[: self.num_frames]
        if self.shape is None:
            self.shape, self.first = found.shape, clip.source
        if found.shape != self.shape or found.shape[1] % BLOCK or found.shape[2] % BLOCK:
            size = f"{found.shape[2]}x{found.shape[1]}"
            message = f"{clip.source!r} is {size} pixels: all clips must be of one size, a multiple of {BLOCK}"
            raise InputError(f"{message}, as {self.first!r} is {self.shape[2]}x{self.shape[1]}")
        if clip.method == STATIC:
            return static_clip(found)
        return scrambled_clip(found, clip.index, BLOCK) if clip.method == SCRAMBLED else found

    def _stored(self, source: str) -> np.ndarray:
        """A dataset's clip, through the codec that files of generated clips have been through too."""
        url, _, row = source.rpartition("#")
        pixels = read_frames(url, self.manifest(url), np.array([int(row)]))[0]
        with tempfile.TemporaryDirectory(prefix="clip-") as scratch:
            path = Path(scratch) / "clip.mp4"
            write_mp4(pixels, path, self.fps)
            return _decoded(str(path))


def _decoded(url: str) -> np.ndarray:
    try:
        with local_copy(Source(source_id=url, uri=url)) as path:
            return np.stack([frame.image for frame in frames(path, DecodeConfig(), native=True)])
    except VideoError as fault:
        raise InputError(f"cannot read {url!r}: {fault}") from fault
