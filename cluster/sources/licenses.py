"""License allow-lists and removal of duplicate sources."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from cluster.sources.manifest import Source
from vgan.errors import InputError

ANY = "any"
_DEDICATIONS = {"zero": "cc0", "mark": "pdm"}
_DEED = re.compile(r"creativecommons\.org/(licenses|publicdomain)/([a-z+-]+)(?:/([\d.]+))?")
# Version tags that are content hashes: those of S3 (single-part or multipart) and Google. Other servers' tags are times
# and sizes.
_CONTENT_HASH = re.compile(r"(etag|md5hash|content-md5):([0-9a-f]{32}(-\d+)?|[A-Za-z0-9+/]{22}==)")


def license_names(name: str | None, url: str | None) -> set[str]:
    """Return the names that an allow-list may use for a license, in lower case.

    These are its name, its URL, its Creative Commons code (by-sa, cc0, pdm; https://creativecommons.org/licenses/), and
    code and version (by-sa-2.0).
    """
    names = {text.strip().lower() for text in (name, url) if text}
    for text in list(names):
        if deed := _DEED.search(text):
            code = _DEDICATIONS.get(deed[2], deed[2]) if deed[1] == "publicdomain" else deed[2]
            names |= {code, f"{code}-{deed[3]}"} if deed[3] else {code}
    return names


def license_filter(licenses: Sequence[str]) -> Callable[[str | None, str | None], bool]:
    """Return the predicate of an allow-list: True for a license (name, URL) on it.

    An empty list, or one with the entry `any`, allows every license, an unknown one (None, None) included.
    """
    entries = {entry.strip().lower() for entry in licenses}
    if not entries or ANY in entries:
        return lambda _name, _url: True
    return lambda name, url: bool(entries & license_names(name, url))


def check_license_names(licenses: Sequence[str], known: Iterable[tuple[str, str]]) -> None:
    """Raise InputError if an entry of an allow-list matches none of the licenses (name, URL) in `known`."""
    known = list(known)
    names = set().union(*(license_names(*license_) for license_ in known), {ANY})
    for entry in licenses:
        if entry.strip().lower() not in names:
            valid = ", ".join(f"{name!r}" for name, _ in known)
            raise InputError(f"licenses: {entry!r} must be one of {valid}, or a code like by-sa, cc0 or pdm")


def deduplicate(sources: Sequence[Source]) -> tuple[list[Source], int]:
    """Remove duplicate sources: those with the URI of an earlier one, or with its size and content hash.

    Contents are compared only if the version of the source is a content hash.

    Returns:
        The remaining sources in order, and the number of removed ones.

    Raises:
        InputError: Two different files have the same source_id.
    """
    unique: list[Source] = []
    uris, contents, names = set[str](), set[tuple[int | None, str]](), set[str]()
    for source in sources:
        content = (source.bytes, source.version or "")
        is_hash = bool(_CONTENT_HASH.fullmatch(content[1]))
        if source.uri in uris or (is_hash and content in contents):
            continue
        if source.source_id in names:
            raise InputError(
                f"two videos have the source_id {source.source_id!r}, the second is {source.uri!r}: rename one"
            )
        uris.add(source.uri)
        names.add(source.source_id)
        if is_hash:
            contents.add(content)
        unique.append(source)
    return unique, len(sources) - len(unique)
