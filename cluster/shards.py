"""Dataset on storage: Parquet shards with one row per clip, and the manifest that lists them.

Frames are a plain binary column: a Ray tensor column of uint8 takes 4 times the bytes and reads 27 times slower,
because Parquet has no 8-bit type. Codec raw stores pixels; codec jpeg stores one JPEG strip per clip
(vgan/video/image_strips.py), measured on UCF101: a fifth of the bytes, PSNR 42 dB, about 1.5 ms of one core to decode a clip.
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

from cluster.observability.progress_bar import progress_bar
from cluster.sources.manifest import ATTRIBUTION_COLUMNS
from cluster.storage.files import exists, json_bytes, read_json, read_row_group, write_json
from cluster.storage.urls import arrow_filesystem, filesystem, join_url
from vgan.errors import InputError
from vgan.records import SCHEMA_VERSION, VIDEO_REVISION, Clip, ClipScores
from vgan.scenes.labels import scene_column
from vgan.video.config import ClipSpec, VideoConfig
from vgan.video.image_strips import read_strip

CODECS = ("raw", "jpeg")
ROWS_PER_GROUP = 64  # 25 MB raw: a good size for one ranged read of an object store; also the unit of shuffling
READERS = 16  # threads; they mostly wait for an object store
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
    """Return the Arrow schema of a shard; its metadata describes the encoding of `frames`.

    Args:
        spec: shape of a clip.
        codec: one of CODECS.
        credited: include the columns `sources.CREDITS`. Datasets of sources without attribution omit them and stay
            byte-identical to those written before these columns existed.
        scenes: scored scene categories, one probability column each; without any, all scene columns are omitted.
    """
    arrow_types = {"float": pa.float64(), "int": pa.int64(), "bool": pa.bool_(), "str": pa.string()}
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
            *(pa.field(name, pa.string()) for name in ATTRIBUTION_COLUMNS if credited),
            *(pa.field(f.name, arrow_types[str(f.type)], nullable=False) for f in fields(ClipScores)),
            *([pa.field("scene", pa.string()), pa.field("scene_score", pa.float64())] if scenes else []),
            *(pa.field(scene_column(category), pa.float64()) for category in scenes),
            pa.field("frames", pa.binary(frame_bytes(spec)) if codec == "raw" else pa.binary(), nullable=False),
        ],
        metadata=footer,
    )


def frame_bytes(spec: ClipSpec) -> int:
    """Return the size of one clip's raw pixels in bytes."""
    return spec.num_frames * spec.size * spec.size * 3


def clip_row(clip: Clip, **lineage: Any) -> dict[str, Any]:
    """Build a shard row from a clip and its lineage (clip_id, source_id, source_uri, label, split, decoder)."""
    row = {"start_s": clip.start_s, "shot": clip.shot, **asdict(clip.evidence), **clip.scenes, **lineage}
    return row | {"frames": np.ascontiguousarray(clip.frames).tobytes()}


def to_frames(column: pa.ChunkedArray | pa.Array, spec: ClipSpec) -> np.ndarray:
    """Decode a `frames` column to uint8 (N, T, H, W, 3); a single chunk of raw pixels is not copied.

    Raises:
        VideoError: a JPEG strip is corrupt.
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
    """Return a column as one array; a single chunk is not copied (`combine_chunks` would copy it)."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def table_bytes(table: pa.Table) -> bytes:
    """Encode a table as a Parquet file. Deterministic: equal tables give equal bytes."""
    scalars = [name for name in table.column_names if name != "frames"]
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        row_group_size=ROWS_PER_GROUP,
        compression="lz4",
        use_dictionary=scalars,
        write_statistics=scalars,  # minima and maxima of pixels would never be read
        write_page_checksum=True,
        data_page_size=8 << 20,  # one value is 384 KiB
    )
    return buffer.getvalue()


def settings_of(config: VideoConfig) -> dict[str, Any]:
    """Return the settings that identify a dataset, as stored in its manifest.

    Without a scene classifier, the scene settings are left out; with one, its path and GPU share are, because
    `scene.sha256` identifies it.
    """
    content = asdict(config)
    if not config.scene.sha256:
        del content["scene"]
    else:
        del content["scene"]["weights"], content["scene"]["gpus"]
    return content


def config_digest(config: VideoConfig) -> str:
    """Return 16 hex digits that change with any setting that changes the dataset made from the same videos."""
    return _digest(settings_of(config))


def work_digest(config: VideoConfig) -> str:
    """Return 16 hex digits that change with any setting that requires decoding the same video again.

    Gates and the scene filter are excluded: they are applied to the stored scores. With `stabilize.keep_failed` the
    gates are included, because they are then also applied during decoding. The decoder's time and memory limits are
    excluded, so that a retry may raise them.
    """
    content = settings_of(config)
    if not config.stabilize.keep_failed:
        del content["gates"]
    for limit in ("timeout_s", "time_factor", "memory_gb"):
        del content["decode"][limit]
    for key in ("keep", "threshold") if "scene" in content else ():
        del content["scene"][key]
    return _digest(content)


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json_bytes([SCHEMA_VERSION, VIDEO_REVISION, settings])).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of the dataset."""

    path: str  # relative to the dataset's folder
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Description of a dataset. `digest` identifies its content: the same sources and settings give the same digest."""

    clip: ClipSpec
    config: dict[str, Any]
    counts: dict[str, Any]  # of sources, accepted, rejected, windows, clips, rejects by stage and reason
    shards: list[Shard]
    schema_version: int = SCHEMA_VERSION
    digest: str = ""
    inputs: str = ""  # digest of sources, settings and deletion list: an equal one means nothing needs to be done
    created: str = ""
    git_commit: str = ""

    @property
    def video(self) -> VideoConfig:
        """Video settings the clips were made with."""
        sections = {f.name: type(getattr(VideoConfig(), f.name)) for f in fields(VideoConfig)}
        return VideoConfig(
            **{name: section(**self.config["video"].get(name, {})) for name, section in sections.items()}
        )

    @property
    def scenes(self) -> list[str]:
        """Scored scene categories; empty without scene scores."""
        return self.config.get("video", {}).get("scene", {}).get("categories", [])

    def content_digest(self) -> str:
        """Return the SHA-256 of the manifest's content, without `digest`, `inputs`, `created` and `git_commit`."""
        content = {k: v for k, v in asdict(self).items() if k not in ("digest", "inputs", "created", "git_commit")}
        return hashlib.sha256(json_bytes(content)).hexdigest()


def write_manifest(manifest: Manifest, url: str) -> None:
    """Write manifest.json into a dataset's folder atomically; a dataset is finished once it exists."""
    write_json(join_url(url, MANIFEST), asdict(manifest))


def read_manifest(url: str) -> Manifest:
    """Read the manifest of the dataset at a folder's url.

    Raises:
        InputError: no manifest (unfinished or no dataset), or a manifest of another schema version.
    """
    path = join_url(url, MANIFEST)
    if not exists(path):
        raise InputError(
            f"no dataset at {url!r}: {MANIFEST} is missing; create or complete it with `python -m jobs.prepare`"
        )
    value = read_json(path)
    if value.get("schema_version") != SCHEMA_VERSION:
        version = value.get("schema_version")
        raise InputError(f"{path!r} has schema version {version}, this code reads {SCHEMA_VERSION}: prepare it again")
    return Manifest(**value | {"clip": ClipSpec(**value["clip"]), "shards": [Shard(**s) for s in value["shards"]]})


def read_clips(
    url: str, manifest: Manifest, columns: list[str] | None = None, only: str = "", optional: Sequence[str] = ()
) -> pa.Table:
    """Read rows of a dataset in stored order; the result must fit in memory.

    Args:
        url: dataset folder.
        manifest: its manifest.
        columns: column names; None reads all.
        only: id of the single clip to read; empty reads every clip.
        optional: further column names, skipped if the dataset lacks them.
    """
    fs, root = arrow_filesystem(url)
    if optional and manifest.shards:
        available = pq.read_schema(f"{root}/{manifest.shards[0].path}", filesystem=fs).names
        columns = [*(columns or ()), *(name for name in optional if name in available)]
    filters = [("clip_id", "=", only)] if only else None
    tables = [
        pq.read_table(f"{root}/{shard.path}", columns=columns, filesystem=fs, partitioning=None, filters=filters)
        for shard in manifest.shards
    ]
    return pa.concat_tables(tables)


def small_columns(url: str, manifest: Manifest, columns: Sequence[str], desc: str) -> Iterator[pa.Table]:
    """Yield these columns of each shard in stored order, without those the dataset lacks; shards load in parallel."""

    def read(path: str) -> pa.Table:
        fs, file_path = filesystem(join_url(url, path))
        with fs.open(file_path, "rb") as file:
            shard = pq.ParquetFile(file)
            return shard.read(columns=[name for name in columns if name in shard.schema_arrow.names])

    with ThreadPoolExecutor(READERS) as pool, progress_bar(len(manifest.shards), "shard", desc) as bar:
        for table in pool.map(read, [shard.path for shard in manifest.shards]):
            yield table
            bar.update()


def read_frames(url: str, manifest: Manifest, rows: np.ndarray) -> np.ndarray:
    """Read uint8 frames (N, T, H, W, 3) of the clips at positions `rows` (N,) in stored order, by row group."""
    spec, first = manifest.clip, 0
    out = np.empty((len(rows), spec.num_frames, spec.size, spec.size, 3), np.uint8)
    for shard in manifest.shards:
        for group, start in enumerate(range(0, shard.rows, ROWS_PER_GROUP)):
            count = min(ROWS_PER_GROUP, shard.rows - start)
            selected = np.flatnonzero((rows >= first) & (rows < first + count))
            if len(selected):
                stored = read_row_group(join_url(url, shard.path), group, ["frames"])["frames"]
                out[selected] = to_frames(stored.take(pa.array(rows[selected] - first)), spec)
            first += count
    return out
