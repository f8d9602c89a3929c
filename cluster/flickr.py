"""Flickr's videos as sources, by its REST API (https://www.flickr.com/services/api/).

A search gives at most 4,000 results, so time is halved until a piece holds fewer. Each video then takes one call for
its files. A key may make 3,600 calls an hour (https://www.flickr.com/services/developer/api/), which sets the pace:
calls are spread evenly, retries among them. Every answer goes into a journal before it is used.
"""

from __future__ import annotations

import functools
import http.client
import json
import logging
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from cluster.journal import Journal
from cluster.licenses import allowing, check_known
from cluster.progress import progress_bar
from cluster.sources import Source
from vgan.config import option
from vgan.errors import BadInput

KEY = "FLICKR_API_KEY"
REST = "https://api.flickr.com/services/rest/"
HOURLY, HOUR_S = 3600, 3600.0  # calls that a key may make in an hour
RESULTS, PER_PAGE = (
    4000,
    500,
)  # of one search, of one page: https://www.flickr.com/services/api/flickr.photos.search.html
EXTRAS = "license,owner_name,tags,media"
ATTEMPTS, BACKOFF_S, TIMEOUT_S = 7, 2.0, 60.0  # pauses of 2 to 64 s: an outage of two minutes is waited out
AWAY = frozenset({0, 10, 105, 106})  # codes of a service that is away for a while; 10 of searches
GONE = {1: "not found", 2: "permission denied"}  # codes of flickr.photos.getSizes: this video is not to be had

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FlickrConfig:
    """What to search Flickr for; the key comes from the environment variable FLICKR_API_KEY."""

    tags: list[str] = option(
        [], "videos with one of these tags; an entry that ends in .txt is a list's url, one a line"
    )
    words: list[str] = option([], "videos with one of these in title, description or tags; lists as for tags")
    since: str = option("2008-04-01", "uploaded from this day on (UTC); there were no videos before April 2008")
    until: str = option("", "uploaded before this day (UTC); empty: before the first start of this command")
    height: int = option(360, "short side of the file that is taken, pixels: the smallest rendition not below it")
    calls_per_hour: int = option(3500, "pace; Flickr allows a key 3,600")
    url: str = option(REST, "the API's address")

    def __post_init__(self) -> None:
        if self.calls_per_hour < 1 or (self.url == REST and self.calls_per_hour > HOURLY):
            raise ValueError(f"flickr.calls_per_hour must be in 1..{HOURLY}, got {self.calls_per_hour}")
        if self.height < 1:
            raise ValueError(f"flickr.height must be at least 1, got {self.height}")
        if not self.url.startswith(("https://", "http://")):
            raise ValueError(f"flickr.url must begin with https:// or http://, got {self.url!r}")
        for name in ("since", "until"):
            _day(f"flickr.{name}", getattr(self, name) or "2008-04-01")


def _day(name: str, text: str) -> int:
    """Unix time of a day's start, UTC."""
    try:
        found = date.fromisoformat(text)
    except ValueError as fault:
        raise ValueError(f"{name} must be a day like 2012-05-31, got {text!r}") from fault
    return int(datetime(found.year, found.month, found.day, tzinfo=UTC).timestamp())


class Refused(Exception):
    """An answer with stat=fail that another try will not change."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{message} (code {code})")
        self.code = code


class Flickr:
    """Calls of the API, paced and tried again. The key is sent in the body of a POST: urls end up in logs."""

    def __init__(self, config: FlickrConfig) -> None:
        self._key = os.environ.get(KEY, "")
        if not self._key:
            raise BadInput(f"{KEY} is not set: put your key of https://www.flickr.com/services/apps/ into it")
        self._url, self._pause_s, self._next = config.url, HOUR_S / config.calls_per_hour, 0.0

    def call(self, method: str, **arguments: str | int) -> dict[str, Any]:
        """The answer to one method.

        Raises:
            Refused: stat=fail, for a reason that stays.
            BadInput: the key is not valid, or the service is away for longer than ATTEMPTS tries.
        """
        why = ""
        for attempt in range(1, ATTEMPTS + 1):
            wait_s = 0.0
            try:
                answer = self._post(method, arguments)
                if answer.get("stat") == "ok":
                    return answer
                code, why = int(answer.get("code", 0)), self._safe(str(answer.get("message", "no reason given")))
                if code == 100:
                    raise BadInput(f"Flickr does not know the key in {KEY} ({why}): correct it")
                if code not in AWAY:
                    raise Refused(code, why)
            except urllib.error.HTTPError as fault:
                why = f"status {fault.code}"
                if fault.code not in (408, 429) and fault.code < 500:
                    raise BadInput(f"{self._url} answers {method} with status {fault.code}: see flickr.url") from fault
                after = fault.headers.get("Retry-After", "")
                wait_s = min(HOUR_S, float(after)) if after.isdigit() else 0.0
            except (OSError, http.client.HTTPException, ValueError) as fault:  # ValueError: no JSON
                why = self._safe(f"{type(fault).__name__}: {fault}")
            log.warning("%s failed (%s), attempt %d of %d", method, why, attempt, ATTEMPTS)
            if attempt < ATTEMPTS:
                time.sleep(max(wait_s, BACKOFF_S * 2 ** (attempt - 1)))
        raise BadInput(f"{method} failed {ATTEMPTS} times, last by {why}: run the same command later, it goes on")

    def _post(self, method: str, arguments: dict[str, str | int]) -> dict[str, Any]:
        now = time.monotonic()
        time.sleep(max(0.0, self._next - now))
        self._next = max(now, self._next) + self._pause_s
        fields = {"method": method, "api_key": self._key, "format": "json", "nojsoncallback": 1, **arguments}
        request = urllib.request.Request(self._url, urllib.parse.urlencode(fields).encode())  # noqa: S310
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310 - http(s), see FlickrConfig
            found = json.load(answer)
        if not isinstance(found, dict):
            raise ValueError("the answer is no JSON object")
        return found

    def _safe(self, text: str) -> str:
        return text.replace(self._key, "***")

    def licenses(self) -> dict[str, tuple[str, str]]:
        """Name and url of every licence, by id: https://www.flickr.com/services/api/flickr.photos.licenses.getInfo.html"""
        found = self.call("flickr.photos.licenses.getInfo")["licenses"]["license"]
        return {str(row["id"]): (str(row["name"]), str(row.get("url") or "")) for row in found}

    def search(self, **query: str | int) -> dict[str, Any]:
        """How many videos there are in all, and one page of them: id, owner, author, license (id), tags."""
        extra: dict[str, str | int] = {"media": "videos", "extras": EXTRAS, "per_page": PER_PAGE}
        found = self.call("flickr.photos.search", sort="date-posted-asc", **extra, **query)["photos"]
        rows = [
            {
                "id": str(row["id"]),
                "owner": str(row.get("owner", "")),
                "author": str(row.get("ownername") or row.get("owner", "")),
                "license": str(row.get("license", "")),
                "tags": ",".join(str(row.get("tags", "")).split()),
            }
            for row in found["photo"]
            if row.get("media", "video") == "video"
        ]
        return {"total": int(found["total"]), "rows": rows}

    def sizes(self, video: str) -> dict[str, Any]:
        """A video's files as [short side, url], or why there are none.

        https://www.flickr.com/services/api/flickr.photos.getSizes.html. Urls other than http(s) are not taken.
        """
        try:
            found = self.call("flickr.photos.getSizes", photo_id=video)["sizes"]["size"]
        except Refused as fault:
            if fault.code not in GONE:
                raise
            return {"why": GONE[fault.code]}
        files = [
            [min(int(row.get("width") or 0), int(row.get("height") or 0)), row["source"]]
            for row in found
            if row.get("media") == "video"
            and "player" not in row.get("label", "").lower()  # a page's, not a file
            and str(row.get("source", "")).startswith(("https://", "http://"))
        ]
        return {"files": files} if files else {"why": "no file is offered"}


# ---- the crawl ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crawl:
    """What a crawl found, and what it could not take, by reason."""

    sources: list[Source]
    left_out: dict[str, int]


def crawl(config: FlickrConfig, licenses: Sequence[str], journal: Journal, limit: int = 0) -> Crawl:
    """Every video that Flickr finds for the tags and words under these licences, each once.

    Args:
        config: what to search for.
        licenses: allow-list; names are looked up when the crawl runs.
        journal: where answers are kept; of a crawl that was cut off, it asks what is missing only.
        limit: stop at so many videos; 0 takes all.

    Raises:
        BadInput: no key, one that is not valid, a licence that Flickr does not have, or a service that stays away.
    """
    client = Flickr(config)
    try:
        return _crawl(client, config, licenses, journal, limit)
    except Refused as fault:
        raise BadInput(f"Flickr refuses the search: {fault}") from fault


def _crawl(client: Flickr, config: FlickrConfig, licenses: Sequence[str], journal: Journal, limit: int) -> Crawl:
    known = client.licenses()
    check_known(licenses, known.values())
    allowed = allowing(licenses)
    ids = [number for number, names in known.items() if allowed(*names)]
    query = {"license": ",".join(ids)} if len(ids) < len(known) else {}
    until = _day("until", config.until) if config.until else journal.remember("until", lambda: int(time.time()))
    since = _day("since", config.since)
    sources: list[Source] = []
    left_out: dict[str, int] = {}
    seen: set[str] = set()
    with progress_bar(total=0, unit="video", desc="flickr") as bar:
        for terms in [{"tags": t} for t in config.tags] + [{"text": w} for w in config.words]:
            pages = _pages(client, journal, {**terms, **query}, (since, until - 1), bar, left_out)
            for row in (row for page in pages for row in page):
                bar.update()
                names = known.get(row["license"], ("", ""))
                if row["id"] in seen or not allowed(*names):
                    continue
                seen.add(row["id"])
                found = journal.remember(f"sizes {row['id']}", functools.partial(client.sizes, row["id"]))
                if "why" in found:
                    left_out[found["why"]] = left_out.get(found["why"], 0) + 1
                    continue
                sources.append(_source(row, _file(found["files"], config.height), *names))
                if len(sources) == limit:
                    return Crawl(sources, left_out)
    return Crawl(sources, left_out)


def _pages(
    client: Flickr,
    journal: Journal,
    query: dict[str, str],
    span: tuple[int, int],
    bar: Any,
    left_out: dict[str, int],
) -> Iterator[list[dict[str, str]]]:
    """Pages of the videos uploaded within a span of Unix seconds, both ends included, earliest first."""

    def page(number: int) -> dict[str, Any]:
        key = f"search {json.dumps(query, sort_keys=True)} {span[0]} {span[1]} {number}"
        dates = {"min_upload_date": span[0], "max_upload_date": span[1]}
        return journal.remember(key, lambda: client.search(**query, **dates, page=number))

    first = page(1)
    total, (start, end) = first["total"], span
    if total > RESULTS and start < end:
        middle = (start + end) // 2
        yield from _pages(client, journal, query, (start, middle), bar, left_out)
        yield from _pages(client, journal, query, (middle + 1, end), bar, left_out)
        return
    if total > RESULTS:
        log.warning("%d videos of %s within one second: Flickr shows the first %d", total, query, RESULTS)
        left_out["beyond the limit of a search"] = left_out.get("beyond the limit of a search", 0) + total - RESULTS
    bar.total += min(total, RESULTS)
    yield first["rows"]
    for number in range(2, -(-min(total, RESULTS) // PER_PAGE) + 1):
        yield page(number)["rows"]


def _file(files: list[list[Any]], height: int) -> str:
    """Url of the smallest file whose short side is not below `height`, else of the largest."""
    enough = [file for file in files if file[0] >= height]
    return min(enough)[1] if enough else max(files)[1]


def _source(row: dict[str, str], uri: str, license_name: str, license_url: str) -> Source:
    owner, video = (urllib.parse.quote(row[key], safe="@") for key in ("owner", "id"))
    return Source(
        uri=uri,
        source_id=f"flickr/{video}",
        license=license_name or None,
        license_url=license_url or None,
        author=row["author"] or None,
        page=f"https://www.flickr.com/photos/{owner}/{video}",
        tags=row["tags"] or None,
    )


def terms(entries: Sequence[str], read_lines: Callable[[str], list[str]]) -> list[str]:
    """Search terms, each once, with those of lists (urls that end in .txt) in their place."""
    found = [term for entry in entries for term in (read_lines(entry) if entry.endswith(".txt") else [entry])]
    return list(dict.fromkeys(term.strip() for term in found if term.strip()))
