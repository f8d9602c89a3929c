"""Which licences a corpus takes, and which videos it holds twice."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from cluster.sources import Source
from vgan.errors import BadInput

ANY = "any"
_DEDICATIONS = {"zero": "cc0", "mark": "pdm"}
_DEED = re.compile(r"creativecommons\.org/(licenses|publicdomain)/([a-z+-]+)(?:/([\d.]+))?")
# A hash of the content, as S3 (one part or several) and Google tell it; other servers' tags are times and sizes.
_CONTENT = re.compile(r"(etag|md5hash|content-md5):([0-9a-f]{32}(-\d+)?|[A-Za-z0-9+/]{22}==)")


def license_names(name: str | None, url: str | None) -> set[str]:
    """What a licence may be called in an allow-list: its name, its url, its code (by-sa, cc0, pdm), code and version.

    Codes are those of Creative Commons' deeds (https://creativecommons.org/licenses/).
    """
    names = {text.strip().lower() for text in (name, url) if text}
    for text in list(names):
        if deed := _DEED.search(text):
            code = _DEDICATIONS.get(deed[2], deed[2]) if deed[1] == "publicdomain" else deed[2]
            names |= {code, f"{code}-{deed[3]}"} if deed[3] else {code}
    return names


def allowing(licenses: Sequence[str]) -> Callable[[str | None, str | None], bool]:
    """Whether a licence (name, url) is on the allow-list; an empty list, or `any` in it, takes all, told or not."""
    wanted = {entry.strip().lower() for entry in licenses}
    if not wanted or ANY in wanted:
        return lambda _name, _url: True
    return lambda name, url: bool(wanted & license_names(name, url))


def check_known(licenses: Sequence[str], known: Iterable[tuple[str, str]]) -> None:
    """Raise BadInput where an entry of the allow-list is none of the licences (name, url) that an origin knows."""
    known = list(known)
    names = set().union(*(license_names(*each) for each in known), {ANY})
    for entry in licenses:
        if entry.strip().lower() not in names:
            there = ", ".join(f"{name!r}" for name, _ in known)
            raise BadInput(f"licenses: {entry!r} is none of those there: {there}, or a code like by-sa, cc0 or pdm")


def without_repeats(sources: Sequence[Source]) -> tuple[list[Source], int]:
    """The sources without those whose url, or where its hash is known whose content, is one of an earlier one; how many
    were left out.

    Raises:
        BadInput: two different files have one name.
    """
    kept: list[Source] = []
    uris, contents, names = set[str](), set[tuple[int | None, str]](), set[str]()
    for source in sources:
        content = (source.bytes, source.version or "")
        hashed = bool(_CONTENT.fullmatch(content[1]))
        if source.uri in uris or (hashed and content in contents):
            continue
        if source.source_id in names:
            raise BadInput(f"two videos are called {source.source_id!r}, the second is {source.uri!r}: rename one")
        uris.add(source.uri)
        names.add(source.source_id)
        if hashed:
            contents.add(content)
        kept.append(source)
    return kept, len(sources) - len(kept)
