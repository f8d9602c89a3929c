"""The dataset on storage: Parquet shards of clip rows, and the manifest that makes them a dataset.

Frames are a plain binary column: a Ray tensor column of uint8 takes 4 times the bytes and reads 27 times slower,
because Parquet has no 8-bit type. Codec raw keeps the pixels, jpeg one strip a clip (vgan/video/strips.py): of UCF101 a
fifth of the bytes, 42 dB, and about 1.5 ms of a core to read a clip.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.progress import progress_bar
from cluster.sources import CREDITS
from vgan.config import ClipSpec, VideoConfig
from vgan.errors import BadInput
from vgan.records import SCHEMA_VERSION, VIDEO_REVISION, Clip, Evidence
from vgan.scenes.labels import scene_column
from vgan.video.strips import read_strip

CODECS = ("raw", "jpeg")
ROWS_PER_GROUP = 64  # 25 MB raw: what one ranged read of an object store should fetch, and the unit of shuffling
READERS = 16  # threads that wait for an object store's answers
MANIFEST = "manifest.json"
REJECTS = "rejects.parquet"
REJECTS_SCHEMA = pa.schema(
    [
        pa.field("source_id", pa.string(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("start_s", pa.float64()),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
    ]
)


def clip_schema(spec: ClipSpec, codec: str = "raw", *, credited: bool = False, scenes: Sequence[str] = ()) -> pa.Schema:
    """Columns of a shard; the footer says how to read `frames`.

    Args:
        spec: shape of a clip.
        codec: one of CODECS.
        credited: with the columns of `sources.CREDITS`. Datasets whose sources tell none are as they were before there
            were any, byte for byte.
        scenes: categories that clips were looked at for, each with a column. None, and there is no such column.
    """
    kinds = {"float": pa.float64(), "int": pa.int64(), "bool": pa.bool_(), "str": pa.string()}
    footer = {
        "schema_version": str(SCHEMA_VERSION),
        "frames": f"uint8 THWC {spec.num_frames}x{spec.size}x{spec.size}x3 RGB"
        if codec == "raw"
        else f"JPEG of {spec.num_frames} frames of {spec.size}x{spec.size} below each other, quality 95, 4:4:4",
        "fps": str(spec.fps),
    }
    return pa.schema(
        [
            pa.field("clip_id", pa.string(), nullable=False),
            pa.field("source_id", pa.string(), nullable=False),
            pa.field("source_uri", pa.string(), nullable=False),
            pa.field("start_s", pa.float64(), nullable=False),
            pa.field("shot", pa.int64(), nullable=False),
            pa.field("label", pa.string()),
            pa.field("split", pa.string()),
            pa.field("decoder", pa.string(), nullable=False),
            *(pa.field(name, pa.string()) for name in CREDITS if credited),
            *(pa.field(f.name, kinds[str(f.type)], nullable=False) for f in fields(Evidence)),
            *([pa.field("scene", pa.string()), pa.field("scene_score", pa.float64())] if scenes else []),
            *(pa.field(scene_column(category), pa.float64()) for category in scenes),
            pa.field("frames", pa.binary(frame_bytes(spec)) if codec == "raw" else pa.binary(), nullable=False),
        ],
        metadata=footer,
    )


def frame_bytes(spec: ClipSpec) -> int:
    """Bytes of one clip's pixels."""
    return spec.num_frames * spec.size * spec.size * 3


def clip_row(clip: Clip, **lineage: Any) -> dict[str, Any]:
    """A shard row from a clip and its lineage (clip_id, source_id, source_uri, label, split, decoder)."""
    row = {"start_s": clip.start_s, "shot": clip.shot, **asdict(clip.evidence), **clip.scenes, **lineage}
    return row | {"frames": np.ascontiguousarray(clip.frames).tobytes()}


def to_frames(column: pa.ChunkedArray | pa.Array, spec: ClipSpec) -> np.ndarray:
    """The `frames` column as uint8 (N, T, H, W, 3), without a copy where it is one chunk of raw pixels.

    Raises:
        BadVideo: a JPEG is damaged.
    """
    array = one_array(column) if isinstance(column, pa.ChunkedArray) else column
    if not pa.types.is_fixed_size_binary(array.type):
        frames = np.empty((len(array), spec.num_frames, spec.size, spec.size, 3), np.uint8)
        for row, clip in enumerate(array):
            frames[row] = read_strip(clip.as_py())
        return frames
    size = frame_bytes(spec)
    flat = np.frombuffer(array.buffers()[1], np.uint8, count=len(array) * size, offset=array.offset * size)
    return flat.reshape(len(array), spec.num_frames, spec.size, spec.size, 3)


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece; combining alone would copy one that is."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def table_bytes(table: pa.Table) -> bytes:
    """A shard file's bytes; the same table always gives the same bytes."""
    scalars = [name for name in table.column_names if name != "frames"]
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        row_group_size=ROWS_PER_GROUP,
        compression="lz4",
        use_dictionary=scalars,
        write_statistics=scalars,  # minima of pixels are of no use
        write_page_checksum=True,
        data_page_size=8 << 20,  # one value is 384 KiB
    )
    return buffer.getvalue()


def settings_of(config: VideoConfig) -> dict[str, Any]:
    """What a dataset's settings are told by: no scenes where nobody looked, and else not where the classifier lay."""
    content = asdict(config)
    if not config.scene.sha256:
        del content["scene"]
    else:
        del content["scene"]["weights"], content["scene"]["gpus"]
    return content


def config_digest(config: VideoConfig) -> str:
    """16 hex digits that change whenever the same video would give another dataset."""
    return _digest(settings_of(config))


def work_digest(config: VideoConfig) -> str:
    """16 hex digits that change whenever the same video would have to be decoded again.

    The gates do not matter, nor which scenes are kept: they are applied to the stored scores. Only `keep_failed` asks
    them while the pixels are there. Nor does how long and with how much memory a decoder may work: a retry may be given
    more of both.
    """
    content = settings_of(config)
    if not config.stabilize.keep_failed:
        del content["gates"]
    for limit in ("timeout_s", "time_factor", "memory_gb"):
        del content["decode"][limit]
    for last in ("keep", "threshold") if "scene" in content else ():
        del content["scene"][last]
    return _digest(content)


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(storage.json_bytes([SCHEMA_VERSION, VIDEO_REVISION, settings])).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of the dataset."""

    path: str  # below the dataset's folder
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a dataset is. `digest` names its content: same sources and settings, same digest, whenever it was made."""

    clip: ClipSpec
    config: dict[str, Any]
    counts: dict[str, Any]  # sources, accepted, rejected, windows, clips, rejects by stage and reason
    shards: list[Shard]
    schema_version: int = SCHEMA_VERSION
    digest: str = ""
    inputs: str = ""  # tells whether the same call would make the same dataset
    created: str = ""
    git_commit: str = ""

    @property
    def video(self) -> VideoConfig:
        """The settings that the clips were made with."""
        kinds = {f.name: type(getattr(VideoConfig(), f.name)) for f in fields(VideoConfig)}
        return VideoConfig(**{name: kind(**self.config["video"].get(name, {})) for name, kind in kinds.items()})

    @property
    def scenes(self) -> list[str]:
        """The categories that clips were looked at for; none where nobody looked."""
        return self.config.get("video", {}).get("scene", {}).get("categories", [])

    def content_digest(self) -> str:
        """SHA-256 over what the dataset is: not when and by which commit it was made."""
        content = {k: v for k, v in asdict(self).items() if k not in ("digest", "inputs", "created", "git_commit")}
        return hashlib.sha256(storage.json_bytes(content)).hexdigest()


def write_manifest(manifest: Manifest, url: str) -> None:
    """Write manifest.json into a dataset's folder, at once: it is what makes the shards a dataset."""
    storage.write_json(storage.join(url, MANIFEST), asdict(manifest))


def read_manifest(url: str) -> Manifest:
    """The manifest of the dataset at a folder's url.

    Raises:
        BadInput: no manifest (an unfinished or no dataset), or one of another version.
    """
    path = storage.join(url, MANIFEST)
    if not storage.exists(path):
        raise BadInput(
            f"no dataset at {url!r}: {MANIFEST} is missing; make it (or finish it) with `python -m jobs.prepare`"
        )
    value = storage.read_json(path)
    if value.get("schema_version") != SCHEMA_VERSION:
        found = value.get("schema_version")
        raise BadInput(f"{path!r} has schema version {found}, this code reads {SCHEMA_VERSION}: prepare it again")
    return Manifest(**value | {"clip": ClipSpec(**value["clip"]), "shards": [Shard(**s) for s in value["shards"]]})


def read_clips(
    url: str, manifest: Manifest, columns: list[str] | None = None, only: str = "", optional: Sequence[str] = ()
) -> pa.Table:
    """Rows of a dataset in stored order, or the one clip whose id is `only`. What is asked for must fit in memory.

    Args:
        columns: names; None: all.
        optional: more of them, taken if the dataset has them.
    """
    fs, root = storage.arrow_filesystem(url)
    if optional and manifest.shards:
        there = pq.read_schema(f"{root}/{manifest.shards[0].path}", filesystem=fs).names
        columns = [*(columns or ()), *(name for name in optional if name in there)]
    filters = [("clip_id", "=", only)] if only else None
    tables = [
        pq.read_table(f"{root}/{shard.path}", columns=columns, filesystem=fs, partitioning=None, filters=filters)
        for shard in manifest.shards
    ]
    return pa.concat_tables(tables)


def small_columns(url: str, manifest: Manifest, columns: Sequence[str], desc: str) -> Iterator[pa.Table]:
    """These of a dataset's columns, those that it has, shard by shard in stored order; many are read at once."""

    def read(path: str) -> pa.Table:
        fs, place = storage.filesystem(storage.join(url, path))
        with fs.open(place, "rb") as file:
            shard = pq.ParquetFile(file)
            return shard.read(columns=[name for name in columns if name in shard.schema_arrow.names])

    with ThreadPoolExecutor(READERS) as pool, progress_bar(len(manifest.shards), "shard", desc) as bar:
        for table in pool.map(read, [shard.path for shard in manifest.shards]):
            yield table
            bar.update()


def read_frames(url: str, manifest: Manifest, rows: np.ndarray) -> np.ndarray:
    """Frames (N, T, H, W, 3) uint8 of the clips at `rows` (N,) of the stored order; a row group at a time is read."""
    spec, first = manifest.clip, 0
    out = np.empty((len(rows), spec.num_frames, spec.size, spec.size, 3), np.uint8)
    for shard in manifest.shards:
        for group, start in enumerate(range(0, shard.rows, ROWS_PER_GROUP)):
            count = min(ROWS_PER_GROUP, shard.rows - start)
            places = np.flatnonzero((rows >= first) & (rows < first + count))
            if len(places):
                stored = storage.read_row_group(storage.join(url, shard.path), group, ["frames"])["frames"]
                out[places] = to_frames(stored.take(pa.array(rows[places] - first)), spec)
            first += count
    return out
