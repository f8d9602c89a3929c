"""Sources manifests from folders, lists, UCF101, Flickr or YFCC100M."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cluster.sources.config import AcquireConfig
from cluster.sources.flickr import crawl, expand_terms
from cluster.sources.licenses import deduplicate, license_filter
from cluster.sources.manifest import Source, list_folder, list_glob, read_manifest_rows, write_sources
from cluster.sources.response_cache import ResponseCache
from cluster.sources.yfcc100m import list_yfcc
from cluster.storage.files import make_writable_folder, read_lines
from cluster.storage.urls import absolute_url, join_url
from vgan.errors import InputError
from vgan.transfer.ucf101 import read_split
from vgan.video.image_strips import read_list


def acquire(config: AcquireConfig) -> None:
    """List the videos of one origin, select by license and deletion list, and write the manifest.

    Raises:
        InputError: not exactly one origin, no license for a web service, or no video remains.
    """
    origins: dict[str, tuple[object, Callable[[AcquireConfig], Sequence[Source]]]] = {
        "folder=": (config.folder, _from_folder),
        "urls=": (config.urls, _from_urls),
        "tinyvideo=": (config.tinyvideo, _from_tinyvideo),
        "ucf101=": (config.ucf101, _from_ucf101),
        "flickr.tags= or flickr.words=": (config.flickr.tags + config.flickr.words, _from_flickr),
        "yfcc.metadata=": (config.yfcc.metadata, _from_yfcc),
    }
    selected = [name for name, (value, _) in origins.items() if value]
    if len(selected) != 1:
        raise InputError(f"give exactly one of {', '.join(origins)}; got {' and '.join(selected) or 'none'}")
    origin, list_videos = origins[selected[0]]
    excluded = set(_lines(config.exclude)) if config.exclude else set()
    videos = list_videos(config)
    is_allowed = license_filter(config.licenses)
    licensed = [s for s in videos if is_allowed(s.license, s.license_url)]
    _print_count(len(videos) - len(licensed), "excluded: license not in licenses=")
    remaining = [s for s in licensed if not s.names & excluded]
    _print_count(len(licensed) - len(remaining), "excluded: on the deletion list")
    sources, num_duplicates = deduplicate(remaining)
    _print_count(num_duplicates, "excluded: duplicate by URL or content")
    sources = sources[: config.limit or None]
    if not sources:
        raise InputError(
            f"all {len(videos)} videos in {origin!r} are excluded" if videos else f"no video found in {origin!r}"
        )
    out = absolute_url(config.out)
    make_writable_folder(out.rpartition("/")[0])
    write_sources(sources, out)
    sizes = [s.bytes for s in sources if s.bytes is not None]
    unknown = len(sources) - len(sizes)
    size = f"{sum(sizes) / 1e6:.1f} MB" + f" and {unknown} of unknown size" * bool(unknown)
    print(f"{len(sources)} videos, {size} -> {out}")


def _print_count(count: int, text: str) -> None:
    if count:
        print(f"{count} {text}", flush=True)


def _lines(url: str) -> list[str]:
    return read_lines(absolute_url(url))


def _from_folder(config: AcquireConfig) -> list[Source]:
    url = absolute_url(config.folder)
    sources, others = list_glob(url) if "*" in url else list_folder(url)
    _print_count(others, "other files ignored: no video suffix, no match of the glob, or a name that is not UTF-8")
    return sources


def _from_urls(config: AcquireConfig) -> Sequence[Source]:
    return read_manifest_rows(absolute_url(config.urls))


def _from_tinyvideo(config: AcquireConfig) -> list[Source]:
    url = absolute_url(config.tinyvideo)
    root = absolute_url(config.root) if config.root else url.rpartition("/")[0]
    names = read_list("\n".join(_lines(url)))
    outside = [name for name in names if name.startswith(("/", "~")) or "://" in name or ".." in name.split("/")]
    if outside:
        raise InputError(f"{url!r}: {outside[0]!r} lies outside the folder of the strips")
    return [Source(uri=join_url(root, name), source_id=name) for name in names]


def _from_ucf101(config: AcquireConfig) -> list[Source]:
    split = read_split(Path(config.ucf101).expanduser().absolute(), config.split)
    if split.missing:
        print(f"{len(split.missing)} of {len(split.missing) + len(split.videos)} listed videos are missing on disk")
    return [
        Source(
            uri=str(v.path),
            source_id=f"{v.path.parent.name}/{v.path.name}",
            bytes=v.path.stat().st_size,
            label=v.class_name,
            split=v.side,
        )
        for v in split.videos
        if config.subset in ("", v.side)
    ]


def _from_flickr(config: AcquireConfig) -> list[Source]:
    _require_licenses(config)
    out = absolute_url(config.out)
    search = replace(
        config.flickr, tags=expand_terms(config.flickr.tags, _lines), words=expand_terms(config.flickr.words, _lines)
    )
    cache = ResponseCache(f"{out}.journal")
    _print_count(cache.resumed, f"API responses of an earlier run are reused from {cache.url}")
    result = crawl(search, config.licenses, cache, config.limit)
    for reason, count in result.left_out.items():
        _print_count(count, f"excluded: {reason}")
    return result.sources


def _from_yfcc(config: AcquireConfig) -> list[Source]:
    _require_licenses(config)
    urls = replace(
        config.yfcc,
        metadata=absolute_url(config.yfcc.metadata),
        hashes=absolute_url(config.yfcc.hashes) if config.yfcc.hashes else "",
    )
    sources, left_out = list_yfcc(urls, license_filter(config.licenses), config.limit)
    for reason, count in left_out.items():
        _print_count(count, f"excluded: {reason}")
    return sources


def _require_licenses(config: AcquireConfig) -> None:
    """Raise InputError unless licenses= is set: some licenses forbid modified copies, some any copy."""
    if not config.licenses:
        raise InputError("licenses= is required: e.g. licenses=[by,by-sa,cc0,pdm], or licenses=any to accept all")
