"""YFCC100M videos as sources: metadata as published, files from Multimedia Commons.

Thomee et al. 2016, https://arxiv.org/abs/1503.01817. A row has 23 columns. Some releases have a line number or a media
hash in addition, in the first columns (id; id, hash; line, id, hash), so columns are counted from the end. The files
are public at s3://multimedia-commons, under a key derived from the hash, whose length varies.
"""

from __future__ import annotations

import bz2
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from urllib.parse import unquote_plus

from cluster.observability.progress_bar import progress_bar
from cluster.sources.config import YfccConfig
from cluster.sources.manifest import Source
from cluster.storage.files import exists
from cluster.storage.urls import filesystem, join_url, redact
from vgan.errors import InputError

USER, NICKNAME, TAGS, MACHINE_TAGS, PAGE, LICENSE, LICENSE_URL, MARKER = -22, -21, -15, -14, -10, -8, -7, -1
VIDEO = b"1"  # value of MARKER for videos; photos have 0
HASH = re.compile(r"[0-9a-f]{7,64}")
MEGABYTE = 1 << 20


def video_url(files: str, media_hash: str) -> str:
    """Return the URL of a video at Multimedia Commons: FILES/012/345/0123456789.mp4 for hash 0123456789.

    Args:
        files: URL of the folder of videos.
        media_hash: Hash of the video in hexadecimal digits.
    """
    return join_url(files, media_hash[:3], media_hash[3:6], f"{media_hash}.mp4")


def list_yfcc(
    config: YfccConfig, allowed: Callable[[str | None, str | None], bool], limit: int = 0
) -> tuple[list[Source], dict[str, int]]:
    """List the videos under allowed licenses.

    Args:
        config: Metadata, tags and the store of the videos.
        allowed: Predicate on name and URL of a license.
        limit: Maximum number of videos; 0 takes all.

    Returns:
        Sources in the order of the metadata, and the number of omitted videos by reason.

    Raises:
        InputError: A file is missing or has another format, or media hashes are needed and none were given.
    """
    required_tags = {tag.strip().lower() for tag in config.tags}
    left_out: dict[str, int] = {}
    videos: list[tuple[str, str, Source]] = []
    for number, row in _rows(config.metadata):
        if row[MARKER].strip() != VIDEO:
            continue
        text = [value.decode("utf-8", errors="replace") for value in row]
        tags = ",".join(unquote_plus(tag) for tag in text[TAGS].split(",") if tag)
        if required_tags and not required_tags & set(tags.lower().split(",")):
            continue
        name, url = unquote_plus(text[LICENSE]), unquote_plus(text[LICENSE_URL])
        if not allowed(name, url):
            left_out["licence"] = left_out.get("licence", 0) + 1
            continue
        video_id, media_hash = _parse_id(text, f"{config.metadata!r}, line {number}")
        source = Source(
            uri="",
            source_id=f"yfcc/{video_id}",
            license=name or None,
            license_url=url or None,
            author=unquote_plus(text[NICKNAME]) or text[USER] or None,
            page=unquote_plus(text[PAGE]) or None,
            tags=tags or None,
        )
        videos.append((video_id, media_hash, source))
        if len(videos) == limit:
            break
    hashes = _read_hashes(config.hashes, {video_id for video_id, media_hash, _ in videos if not media_hash})
    sources = []
    for video_id, metadata_hash, source in videos:
        if media_hash := metadata_hash or hashes.get(video_id, ""):
            sources.append(replace(source, uri=video_url(config.files, media_hash)))
        else:
            left_out["no hash"] = left_out.get("no hash", 0) + 1
    return sources, left_out


def _parse_id(row: list[str], where: str) -> tuple[str, str]:
    """Return id and media hash of a row; the hash is "" if the release has none.

    Args:
        row: Columns of the metadata.
        where: File and line, for error messages.

    Raises:
        InputError: The values are not of this format.
    """
    id_columns = row[: len(row) + USER]  # id; id, hash; line, id, hash
    video_id, media_hash = (id_columns[-1], "") if len(id_columns) == 1 else (id_columns[-2], id_columns[-1])
    if not video_id.isdigit() or (media_hash and not HASH.fullmatch(media_hash)):
        raise InputError(f"{where}: {video_id!r} and {media_hash!r} are no id and media hash of YFCC100M")
    return video_id, media_hash


def _read_hashes(url: str, video_ids: set[str]) -> dict[str, str]:
    """Read the media hashes of videos from yfcc100m_hash, by video id."""
    if not video_ids:
        return {}
    if not url:
        raise InputError("this metadata has no media hashes: give yfcc.hashes=, the url of yfcc100m_hash.bz2")
    hashes = {}
    for number, row in _rows(url, num_columns=(2, 2)):
        video_id, media_hash = (value.decode("ascii", errors="replace").strip() for value in row)
        if video_id in video_ids:
            if not HASH.fullmatch(media_hash):
                raise InputError(f"{url!r}, line {number}: {media_hash!r} is no media hash")
            hashes[video_id] = media_hash
            if len(hashes) == len(video_ids):
                break
    return hashes


def _rows(url: str, num_columns: tuple[int, int] = (23, 25)) -> Iterator[tuple[int, list[bytes]]]:
    """Yield line number and columns of each line of a tab-separated file, with a progress bar.

    Args:
        url: URL of the file, compressed if it ends in .bz2.
        num_columns: Minimum and maximum number of columns.

    Raises:
        InputError: The file is missing, cannot be read, or has another number of columns.
    """
    if not exists(url):
        raise InputError(f"no file at {redact(url)!r}: give a copy of YFCC100M's metadata")
    fs, path = filesystem(url)
    size = fs.info(path).get("size") or 0
    with (
        fs.open(path, "rb") as file,
        bz2.open(file) if url.endswith(".bz2") else nullcontext(file) as lines,
        progress_bar(total=size / MEGABYTE, unit="MB", desc="yfcc") as bar,
    ):
        try:
            for number, line in enumerate(lines, start=1):
                if number % 10_000 == 0:
                    bar.update(file.tell() / MEGABYTE - bar.n)
                row = line.rstrip(b"\r\n").split(b"\t")
                if not num_columns[0] <= len(row) <= num_columns[1]:
                    raise InputError(
                        f"{url!r}, line {number}: {len(row)} columns, YFCC100M has {num_columns[0]} to {num_columns[1]}"
                    )
                yield number, row
        except (OSError, EOFError) as error:
            raise InputError(
                f"{url!r} cannot be read as {'bz2' if url.endswith('.bz2') else 'text'}: {error}"
            ) from error
