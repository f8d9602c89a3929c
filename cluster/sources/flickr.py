"""Flickr videos as sources, through Flickr's REST API (https://www.flickr.com/services/api/).

A search returns at most 4,000 results, so the upload interval is bisected until each part has fewer. Each video then
takes one call for its files. A key may make 3,600 calls per hour (https://www.flickr.com/services/developer/api/), so
calls, retries included, are spaced evenly. Every response is stored in a journal before it is used.
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
from typing import Any

from cluster.observability.progress_bar import progress_bar
from cluster.sources.config import FlickrConfig, unix_time_of_day
from cluster.sources.licenses import check_license_names, license_filter
from cluster.sources.manifest import Source
from cluster.sources.response_cache import ResponseCache
from cluster.storage.retry import retry
from vgan.errors import InputError

log = logging.getLogger(__name__)

KEY = "FLICKR_API_KEY"
HOUR_S = 3600.0
# Maximum results per search and per page: https://www.flickr.com/services/api/flickr.photos.search.html
RESULTS, PER_PAGE = 4000, 500
EXTRAS = "license,owner_name,tags,media"
ATTEMPTS, BACKOFF_S, TIMEOUT_S = 7, 2.0, 60.0  # pauses of 2 to 64 s bridge an outage of two minutes
AWAY = frozenset({0, 10, 105, 106})  # error codes of a temporarily unavailable service; 10: search is unavailable
GONE = {1: "not found", 2: "permission denied"}  # error codes of flickr.photos.getSizes for an unavailable video


class FlickrApiError(Exception):
    """Response with stat=fail that a retry would not change."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{message} (code {code})")
        self.code = code


class _UnavailableError(Exception):
    """Failed call that may succeed later, after `wait_s` seconds at the earliest."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Flickr:
    """Flickr client with evenly spaced calls and retries.

    The key is sent in the body of a POST request, because URLs end up in logs.

    Args:
        config: The API's URL and the maximum rate of calls.

    Raises:
        InputError: The environment variable FLICKR_API_KEY is not set.
    """

    def __init__(self, config: FlickrConfig) -> None:
        self._key = os.environ.get(KEY, "")
        if not self._key:
            raise InputError(f"{KEY} is not set: put your key of https://www.flickr.com/services/apps/ into it")
        self._url, self._pause_s, self._next = config.url, HOUR_S / config.calls_per_hour, 0.0

    def call(self, method: str, **arguments: str | int) -> dict[str, Any]:
        """Call a method of the API and return its response.

        Args:
            method: Name of the method, such as "flickr.photos.search".
            arguments: The method's arguments.

        Raises:
            Refused: The response has stat=fail for a permanent reason.
            InputError: The key is not valid, the HTTP status is final, or ATTEMPTS attempts failed.
        """
        try:
            return retry(
                lambda: self._attempt(method, arguments),
                method,
                attempts=ATTEMPTS,
                backoff_s=BACKOFF_S,
                is_retryable=lambda error: isinstance(error, _UnavailableError),
                adjust_pause=lambda error, pause_s: max(pause_s, getattr(error, "wait_s", 0.0)),
            )
        except _UnavailableError as error:
            raise InputError(
                f"{method} failed {ATTEMPTS} times, last with {error}: run the same command later to resume"
            ) from error

    def _attempt(self, method: str, arguments: dict[str, str | int]) -> dict[str, Any]:
        """Call a method once; raises _UnavailableError for errors after which `call` repeats it."""
        try:
            response = self._post(method, arguments)
            if response.get("stat") == "ok":
                return response
            code = int(response.get("code", 0))
            reason = self._redact_key(str(response.get("message", "no reason given")))
            if code == 100:
                raise InputError(f"Flickr does not accept the key in {KEY} ({reason}): correct it")
            if code not in AWAY:
                raise FlickrApiError(code, reason)
            raise _UnavailableError(reason)
        except urllib.error.HTTPError as error:
            if error.code not in (408, 429) and error.code < 500:
                raise InputError(f"{self._url} answers {method} with status {error.code}: check flickr.url") from error
            retry_after = error.headers.get("Retry-After", "")
            wait_s = min(HOUR_S, float(retry_after)) if retry_after.isdigit() else 0.0
            raise _UnavailableError(f"status {error.code}", wait_s) from error
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: no JSON
            raise _UnavailableError(self._redact_key(f"{type(error).__name__}: {error}")) from error

    def _post(self, method: str, arguments: dict[str, str | int]) -> dict[str, Any]:
        """Send a request, after a pause that keeps to the maximum rate, and parse its JSON response."""
        now = time.monotonic()
        time.sleep(max(0.0, self._next - now))
        self._next = max(now, self._next) + self._pause_s
        fields = {"method": method, "api_key": self._key, "format": "json", "nojsoncallback": 1, **arguments}
        request = urllib.request.Request(self._url, urllib.parse.urlencode(fields).encode())  # noqa: S310
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as stream:  # noqa: S310 - http(s), see FlickrConfig
            response = json.load(stream)
        if not isinstance(response, dict):
            raise ValueError("the response is not a JSON object")
        return response

    def _redact_key(self, text: str) -> str:
        """Replace the API key in a text by asterisks."""
        return text.replace(self._key, "***")

    def licenses(self) -> dict[str, tuple[str, str]]:
        """Return name and URL of every license of Flickr by its id.

        https://www.flickr.com/services/api/flickr.photos.licenses.getInfo.html
        """
        rows = self.call("flickr.photos.licenses.getInfo")["licenses"]["license"]
        return {str(row["id"]): (str(row["name"]), str(row.get("url") or "")) for row in rows}

    def search(self, **query: str | int) -> dict[str, Any]:
        """Request one page of a search for videos, earliest upload first.

        https://www.flickr.com/services/api/flickr.photos.search.html

        Args:
            query: Arguments of the search, `page` included.

        Returns:
            The `total` number of results and the page's `rows`: id, owner, author, license (id), tags.
        """
        extra: dict[str, str | int] = {"media": "videos", "extras": EXTRAS, "per_page": PER_PAGE}
        photos = self.call("flickr.photos.search", sort="date-posted-asc", **extra, **query)["photos"]
        rows = [
            {
                "id": str(row["id"]),
                "owner": str(row.get("owner", "")),
                "author": str(row.get("ownername") or row.get("owner", "")),
                "license": str(row.get("license", "")),
                "tags": ",".join(str(row.get("tags", "")).split()),
            }
            for row in photos["photo"]
            if row.get("media", "video") == "video"
        ]
        return {"total": int(photos["total"]), "rows": rows}

    def sizes(self, video: str) -> dict[str, Any]:
        """Request the files of a video.

        https://www.flickr.com/services/api/flickr.photos.getSizes.html

        Args:
            video: Flickr's id of the video.

        Returns:
            `files`, a list of [short side in pixels, http(s) URL]; or, if there are none, the reason as `why`.
        """
        try:
            sizes = self.call("flickr.photos.getSizes", photo_id=video)["sizes"]["size"]
        except FlickrApiError as error:
            if error.code not in GONE:
                raise
            return {"why": GONE[error.code]}
        files = [
            [min(int(row.get("width") or 0), int(row.get("height") or 0)), row["source"]]
            for row in sizes
            if row.get("media") == "video"
            and "player" not in row.get("label", "").lower()  # a web page's player, not a file
            and str(row.get("source", "")).startswith(("https://", "http://"))
        ]
        return {"files": files} if files else {"why": "no file is offered"}


@dataclass(frozen=True)
class CrawlResult:
    """Result of a crawl."""

    sources: list[Source]
    left_out: dict[str, int]  # number of omitted videos by reason


def crawl(config: FlickrConfig, licenses: Sequence[str], journal: ResponseCache, limit: int = 0) -> CrawlResult:
    """List every video that Flickr finds for the tags and texts under the allowed licenses, each once.

    Args:
        config: Tags, texts and days of upload.
        licenses: Allow-list of licenses; Flickr's ids for them are requested at every start.
        journal: Cache of responses; an interrupted crawl sends only the requests that it has not cached.
        limit: Maximum number of videos; 0 takes all.

    Raises:
        InputError: the key is missing or not valid, Flickr does not have a license, it refuses the search, or the
            service does not answer.
    """
    client = Flickr(config)
    try:
        return _crawl(client, config, licenses, journal, limit)
    except FlickrApiError as error:
        raise InputError(f"Flickr refuses the search: {error}") from error


def _crawl(
    client: Flickr, config: FlickrConfig, licenses: Sequence[str], journal: ResponseCache, limit: int
) -> CrawlResult:
    """Run a crawl with a client; raises Refused where `crawl` raises InputError."""
    flickr_licenses = client.licenses()
    check_license_names(licenses, flickr_licenses.values())
    allowed = license_filter(licenses)
    ids = [license_id for license_id, name_and_url in flickr_licenses.items() if allowed(*name_and_url)]
    query = {"license": ",".join(ids)} if len(ids) < len(flickr_licenses) else {}
    if config.until:
        until = unix_time_of_day("until", config.until)
    else:
        until = journal.get_or_fetch("until", lambda: int(time.time()))
    since = unix_time_of_day("since", config.since)
    sources: list[Source] = []
    left_out: dict[str, int] = {}
    visited: set[str] = set()
    with progress_bar(total=0, unit="video", desc="flickr") as bar:
        for terms in [{"tags": t} for t in config.tags] + [{"text": w} for w in config.words]:
            pages = _pages(client, journal, {**terms, **query}, (since, until - 1), bar, left_out)
            for row in (row for page in pages for row in page):
                bar.update()
                name_and_url = flickr_licenses.get(row["license"], ("", ""))
                if row["id"] in visited or not allowed(*name_and_url):
                    continue
                visited.add(row["id"])
                sizes = journal.get_or_fetch(f"sizes {row['id']}", functools.partial(client.sizes, row["id"]))
                if "why" in sizes:
                    left_out[sizes["why"]] = left_out.get(sizes["why"], 0) + 1
                    continue
                sources.append(_source(row, _choose_file(sizes["files"], config.height), *name_and_url))
                if len(sources) == limit:
                    return CrawlResult(sources, left_out)
    return CrawlResult(sources, left_out)


def _pages(
    client: Flickr,
    journal: ResponseCache,
    query: dict[str, str],
    span: tuple[int, int],
    bar: Any,
    left_out: dict[str, int],
) -> Iterator[list[dict[str, str]]]:
    """Yield pages of search results for an upload interval, earliest first, bisecting intervals with too many results.

    Args:
        client: Client of the API.
        journal: Cache of responses.
        query: Search terms and license ids.
        span: First and last second of upload, in Unix time.
        bar: Progress bar; its total is increased by the number of results.
        left_out: Number of omitted videos by reason; results beyond the limit of a search are added.
    """

    def request_page(number: int) -> dict[str, Any]:
        key = f"search {json.dumps(query, sort_keys=True)} {span[0]} {span[1]} {number}"
        dates = {"min_upload_date": span[0], "max_upload_date": span[1]}
        return journal.get_or_fetch(key, lambda: client.search(**query, **dates, page=number))

    first = request_page(1)
    total, (start, end) = first["total"], span
    if total > RESULTS and start < end:
        middle = (start + end) // 2
        yield from _pages(client, journal, query, (start, middle), bar, left_out)
        yield from _pages(client, journal, query, (middle + 1, end), bar, left_out)
        return
    if total > RESULTS:
        log.warning("%d results for %s within one second: Flickr returns the first %d", total, query, RESULTS)
        left_out["beyond the limit of a search"] = left_out.get("beyond the limit of a search", 0) + total - RESULTS
    bar.total += min(total, RESULTS)
    yield first["rows"]
    for number in range(2, -(-min(total, RESULTS) // PER_PAGE) + 1):
        yield request_page(number)["rows"]


def _choose_file(files: list[list[Any]], height: int) -> str:
    """Return the URL of the smallest file whose short side is at least `height`, else of the largest file."""
    sufficient = [file for file in files if file[0] >= height]
    return min(sufficient)[1] if sufficient else max(files)[1]


def _source(row: dict[str, str], uri: str, license_name: str, license_url: str) -> Source:
    """Convert a search result to a source."""
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


def expand_terms(entries: Sequence[str], read_lines: Callable[[str], list[str]]) -> list[str]:
    """Replace lists (URLs that end in .txt) among search terms by their lines; return each term once, in order."""
    expanded = [term for entry in entries for term in (read_lines(entry) if entry.endswith(".txt") else [entry])]
    return list(dict.fromkeys(term.strip() for term in expanded if term.strip()))
