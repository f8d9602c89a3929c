"""Dataset on storage: Parquet shards with one row per clip, and the manifest that lists them.

Frames are a plain binary column: a Ray tensor column of uint8 takes 4 times the bytes and reads 27 times slower,
because Parquet has no 8-bit type. Codec raw stores pixels; codec jpeg stores one JPEG strip per clip
(vgan/video/image_strips.py), measured on UCF101: a fifth of the bytes, PSNR 42 dB, about 1.5 ms of one core to decode
a clip.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.dataset.manifest import Manifest
from cluster.observability.progress_bar import progress_bar
from cluster.sources.manifest import ATTRIBUTION_COLUMNS
from cluster.storage.files import read_row_group
from cluster.storage.urls import arrow_filesystem, filesystem, join_url
from vgan.records import SCHEMA_VERSION, Clip, ClipScores
from vgan.scenes.labels import scene_column
from vgan.video.config import ClipSpec
from vgan.video.image_strips import read_strip

ROWS_PER_GROUP = 64  # 25 MB raw: a good size for one ranged read of an object store; also the unit of shuffling
READERS = 16  # threads; they mostly wait for an object store


def clip_schema(spec: ClipSpec, codec: str = "raw", *, credited: bool = False, scenes: Sequence[str] = ()) -> pa.Schema:
    """Return the Arrow schema of a shard; its metadata describes the encoding of `frames`.

    Args:
        spec: shape of a clip.
        codec: one of CODECS.
        credited: include the columns `sources.manifest.ATTRIBUTION_COLUMNS`. Datasets of sources without attribution
            omit them and stay byte-identical to those written before these columns existed.
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


def decode_frames(column: pa.ChunkedArray | pa.Array, spec: ClipSpec) -> np.ndarray:
    """Decode a `frames` column to uint8 (N, T, H, W, 3); a single chunk of raw pixels is not copied.

    Raises:
        VideoError: a JPEG strip is corrupt.
    """
    array = combine_chunks(column) if isinstance(column, pa.ChunkedArray) else column
    if not pa.types.is_fixed_size_binary(array.type):
        frames = np.empty((len(array), spec.num_frames, spec.size, spec.size, 3), np.uint8)
        for row, clip in enumerate(array):
            frames[row] = read_strip(clip.as_py())
        return frames
    size = frame_bytes(spec)
    flat = np.frombuffer(array.buffers()[1], np.uint8, count=len(array) * size, offset=array.offset * size)
    return flat.reshape(len(array), spec.num_frames, spec.size, spec.size, 3)


def combine_chunks(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array; a single chunk is not copied (`combine_chunks` would copy it)."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def shard_bytes(table: pa.Table) -> bytes:
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


def iter_columns(url: str, manifest: Manifest, columns: Sequence[str], desc: str) -> Iterator[pa.Table]:
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
                out[selected] = decode_frames(stored.take(pa.array(rows[selected] - first)), spec)
            first += count
    return out
