"""YFCC100M's videos as sources: the metadata as published, the files as Multimedia Commons keeps them.

Thomee et al. 2016, https://arxiv.org/abs/1503.01817. A row has 23 columns; releases that name the line or the media
hash too put those first (id; id, hash; line, id, hash), so columns are counted from the end. The files are public at
s3://multimedia-commons, under a key made of the hash, whose length varies.
"""

from __future__ import annotations

import bz2
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from urllib.parse import unquote_plus

from cluster import storage
from cluster.progress import progress_bar
from cluster.sources import Source
from vgan.config import option
from vgan.errors import BadInput

FILES = "https://multimedia-commons.s3-us-west-2.amazonaws.com/data/videos/mp4"
USER, NICKNAME, TAGS, MACHINE_TAGS, PAGE, LICENSE, LICENSE_URL, MARKER = -22, -21, -15, -14, -10, -8, -7, -1
VIDEO = b"1"  # the marker; photos have 0
HASH = re.compile(r"[0-9a-f]{7,64}")
MEGABYTE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class YfccConfig:
    """Where YFCC100M's metadata is."""

    metadata: str = option("", "url of yfcc100m_dataset, tab-separated, .bz2 or plain")
    hashes: str = option("", "url of yfcc100m_hash, id and media hash; where the metadata has no hashes")
    tags: list[str] = option([], "videos with one of these tags only; empty takes all")
    files: str = option(FILES, "url of the folder that holds the videos by hash")


def video_url(files: str, media_hash: str) -> str:
    """Where Multimedia Commons keeps a video: by the first and the second three letters of its hash."""
    return storage.join(files, media_hash[:3], media_hash[3:6], f"{media_hash}.mp4")


def list_yfcc(
    config: YfccConfig, allowed: Callable[[str | None, str | None], bool], limit: int = 0
) -> tuple[list[Source], dict[str, int]]:
    """The videos under licences that `allowed` takes, in the metadata's order, and what was left out, by reason.

    Raises:
        BadInput: a file is missing or not of this format, or there are no hashes.
    """
    wanted = {tag.strip().lower() for tag in config.tags}
    left_out: dict[str, int] = {}
    found: list[tuple[str, str, Source]] = []
    for number, row in _rows(config.metadata):
        if row[MARKER].strip() != VIDEO:
            continue
        text = [value.decode("utf-8", errors="replace") for value in row]
        tags = ",".join(unquote_plus(tag) for tag in text[TAGS].split(",") if tag)
        if wanted and not wanted & set(tags.lower().split(",")):
            continue
        name, url = unquote_plus(text[LICENSE]), unquote_plus(text[LICENSE_URL])
        if not allowed(name, url):
            left_out["licence"] = left_out.get("licence", 0) + 1
            continue
        video, media_hash = _names(text, f"{config.metadata!r}, line {number}")
        source = Source(
            uri="",
            source_id=f"yfcc/{video}",
            license=name or None,
            license_url=url or None,
            author=unquote_plus(text[NICKNAME]) or text[USER] or None,
            page=unquote_plus(text[PAGE]) or None,
            tags=tags or None,
        )
        found.append((video, media_hash, source))
        if len(found) == limit:
            break
    hashes = _hashes(config.hashes, {video for video, media_hash, _ in found if not media_hash})
    sources = []
    for video, told, source in found:
        if media_hash := told or hashes.get(video, ""):
            sources.append(replace(source, uri=video_url(config.files, media_hash)))
        else:
            left_out["no hash"] = left_out.get("no hash", 0) + 1
    return sources, left_out


def _names(row: list[str], where: str) -> tuple[str, str]:
    """Id and media hash ("" where the release has none) of a row."""
    before = row[: len(row) + USER]  # id; id, hash; line, id, hash
    video, media_hash = (before[-1], "") if len(before) == 1 else (before[-2], before[-1])
    if not video.isdigit() or (media_hash and not HASH.fullmatch(media_hash)):
        raise BadInput(f"{where}: {video!r} and {media_hash!r} are no id and media hash of YFCC100M")
    return video, media_hash


def _hashes(url: str, videos: set[str]) -> dict[str, str]:
    """Media hashes of these videos."""
    if not videos:
        return {}
    if not url:
        raise BadInput("this metadata has no media hashes: give yfcc.hashes=, the url of yfcc100m_hash.bz2")
    found = {}
    for number, row in _rows(url, num_columns=(2, 2)):
        video, media_hash = (value.decode("ascii", errors="replace").strip() for value in row)
        if video in videos:
            if not HASH.fullmatch(media_hash):
                raise BadInput(f"{url!r}, line {number}: {media_hash!r} is no media hash")
            found[video] = media_hash
            if len(found) == len(videos):
                break
    return found


def _rows(url: str, num_columns: tuple[int, int] = (23, 25)) -> Iterator[tuple[int, list[bytes]]]:
    """Rows of a tab-separated file, line number first, with progress by what is read of the file."""
    if not storage.exists(url):
        raise BadInput(f"no file at {storage.redact(url)!r}: give a copy of YFCC100M's metadata")
    fs, path = storage.filesystem(url)
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
                    raise BadInput(
                        f"{url!r}, line {number}: {len(row)} columns, YFCC100M has {num_columns[0]} to {num_columns[1]}"
                    )
                yield number, row
        except (OSError, EOFError) as fault:
            raise BadInput(f"{url!r} cannot be read as {'bz2' if url.endswith('.bz2') else 'text'}: {fault}") from fault
