"""Web server of a study: rating page, sessions, clips and votes. It handles no data that identifies a person.

    GET  /                    the page, the same for everyone; the token follows # in a rater's link, a part that
                              browsers never send
    GET  /session             the number of trials of the token's rater, those still to do, and the practice trials
    GET  /clips/NUMBER        both clips of a trial as one file
    POST /votes               {"trial": 12, "left": true, "milliseconds": 2310}

All but the page require `Authorization: Bearer TOKEN`. Sessions follow from the token and votes are in the database:
a server may be killed at any time, and several may share one database.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import signal
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache

from aiohttp import web

from cluster.storage.files import read_bytes
from cluster.storage.urls import join_url
from cluster.study.study_store import CLIPS, StoredStudy, clip_filename
from cluster.study.vote_store import Vote, VoteStore
from vgan.study.trials import PRACTICE, rater_session
from vgan.viz.study import render_rating_page

MAX_BODY = 512  # bytes; a vote takes 60
MAX_MILLISECONDS = 3_600_000
MAX_BATCH = 100  # votes per transaction: databases limit a statement to some thousand values
BUCKETS = 10_000  # maximum number of rate limits in memory
SHUTDOWN_S = 5.0

RATER = web.RequestKey("rater", int)  # rater who sent the request

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Rate limits of requests."""

    per_second: float = 5.0  # requests per rater, long-term average; a trial takes two
    burst: float = 40.0  # requests per rater at once, e.g. when a page is opened
    bad_per_second: float = 0.2  # requests with bad tokens per address
    bad_burst: float = 20.0


class RatingServer:
    """Server of one study, from its folder and its database."""

    def __init__(self, stored: StoredStudy, url: str, store: VoteStore, limits: Limits | None = None) -> None:
        self.study, self.url, self.store = stored.study, url, store
        self.digest, self.limits = stored.digest, limits or Limits()
        self.practice = stored.study.numbers(PRACTICE)
        self.session = lru_cache(maxsize=1000)(lambda rater: rater_session(stored.study, rater))
        self.read_clip = lru_cache(maxsize=200)(self._read_clip)
        self.page, policy = render_rating_page()
        self.headers = {
            "Server": "study",
            "Cache-Control": "no-store",
            "Content-Security-Policy": policy,
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Robots-Tag": "noindex",
        }
        self._raters, self._strangers = _Buckets(), _Buckets()
        self._waiting: asyncio.Queue[tuple[Vote, asyncio.Future[bool]]] = asyncio.Queue()

    def app(self) -> web.Application:
        """Build the application: a fixed set of routes; request paths are never used as file paths."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._guard])
        app.router.add_get("/", self._page)
        app.router.add_get("/session", self._session)
        app.router.add_get(r"/clips/{number:\d{1,5}}", self._clip)
        app.router.add_post("/votes", self._vote)
        app.on_response_prepare.append(self._add_headers)
        app.cleanup_ctx.append(self._writer)
        return app

    # ---- handlers ------------------------------------------------------------------------------------------------

    async def _page(self, _request: web.Request) -> web.Response:
        return web.Response(text=self.page, content_type="text/html")

    async def _session(self, request: web.Request) -> web.Response:
        rater = request[RATER]
        trials = self.session(rater)
        done = await asyncio.to_thread(self.store.done, str(rater))
        remaining = [number for number in trials if number not in done]
        # The side of the real clip is sent for practice trials only, whose answers the page explains.
        practice = [{"trial": n, "real": "left" if self.study.trials[n].left == 0 else "right"} for n in self.practice]
        return web.json_response({"total": len(trials), "trials": remaining, "practice": practice})

    async def _clip(self, request: web.Request) -> web.Response:
        number = int(request.match_info["number"])
        if number not in self.session(request[RATER]) and number not in self.practice:
            raise web.HTTPNotFound
        data = await asyncio.to_thread(self.read_clip, number)
        return web.Response(body=data, content_type="video/mp4")

    async def _vote(self, request: web.Request) -> web.Response:
        vote = _read_vote(await request.read(), str(request[RATER]))
        if vote is None:
            raise web.HTTPBadRequest
        if vote.trial not in self.session(request[RATER]):
            raise web.HTTPNotFound
        stands: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((vote, stands))
        if not await stands:
            raise web.HTTPConflict  # another choice on this trial is stored already
        return web.json_response({"stored": True})

    # ---- middleware ----------------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Check the token and the rate limits of a request. Addresses are counted in memory only and never stored."""
        if request.path == "/":
            return await handler(request)
        limits = self.limits
        rater = verify_token(request.headers.get("Authorization", "").removeprefix("Bearer "), self.store.secret)
        if rater is None:
            address = request.remote or ""
            if not self._strangers.take(address, limits.bad_per_second, limits.bad_burst):
                raise web.HTTPTooManyRequests
            raise web.HTTPUnauthorized
        if not self._raters.take(str(rater), limits.per_second, limits.burst):
            raise web.HTTPTooManyRequests(headers={"Retry-After": "1"})
        request[RATER] = rater
        return await handler(request)

    async def _add_headers(self, _request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(self.headers)

    async def _writer(self, _app: web.Application):  # type: ignore[no-untyped-def]  # aiohttp's cleanup context
        task = asyncio.create_task(self._write_all())
        yield
        task.cancel()

    async def _write_all(self) -> None:
        """Store all waiting votes in one transaction, repeatedly, so that one disk sync serves concurrent votes."""
        while True:
            batch = [await self._waiting.get()]
            while not self._waiting.empty() and len(batch) < MAX_BATCH:
                batch.append(self._waiting.get_nowait())
            try:
                stands = await asyncio.to_thread(self.store.put, [vote for vote, _ in batch])
            except Exception as error:  # noqa: BLE001 - the database is unreachable: raters get 503 and send again
                log.error("votes could not be stored: %s", error)
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(web.HTTPServiceUnavailable())
                continue
            for (_, answer), stood in zip(batch, stands, strict=True):
                if not answer.done():  # done if its rater has disconnected
                    answer.set_result(stood)

    def _read_clip(self, number: int) -> bytes:
        return read_bytes(join_url(self.url, CLIPS, clip_filename(number)))


class _Buckets:
    """Token buckets by name (https://en.wikipedia.org/wiki/Token_bucket); the least recently used is dropped."""

    def __init__(self) -> None:
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # level and its time, monotonic seconds

    def take(self, name: str, per_second: float, burst: float) -> bool:
        """Take one token of `name`; return False if its bucket is empty."""
        now = time.monotonic()
        level, since = self._levels.pop(name, (burst, now))
        level = min(burst, level + (now - since) * per_second)
        self._levels[name] = (max(level - 1, 0.0) if level >= 1 else level, now)
        if len(self._levels) > BUCKETS:
            self._levels.popitem(last=False)
        return level >= 1


def _read_vote(body: bytes, rater: str) -> Vote | None:
    """Parse the body of a vote; return None if it differs from the page's format in any way."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or set(value) != {"trial", "left", "milliseconds"}:
        return None
    trial, left, milliseconds = value["trial"], value["left"], value["milliseconds"]
    if type(trial) is not int or type(left) is not bool or type(milliseconds) is not int:
        return None
    if not 0 <= milliseconds <= MAX_MILLISECONDS:
        return None
    return Vote(rater=rater, trial=trial, left=left, milliseconds=milliseconds)


# ---- tokens ------------------------------------------------------------------------------------------------------


def make_token(rater: int, secret: bytes) -> str:
    """Return the token of a rater: its number and an HMAC signature with the key in the database."""
    return f"{rater}.{hmac.new(secret, f'rater {rater}'.encode(), hashlib.sha256).hexdigest()[:32]}"


def verify_token(given: str, secret: bytes) -> int | None:
    """Verify a token and return its rater, or None if it is invalid."""
    number = given.partition(".")[0]
    if not (number.isascii() and number.isdigit() and len(number) <= 9):
        return None
    return int(number) if hmac.compare_digest(given.encode(), make_token(int(number), secret).encode()) else None


# ---- process -----------------------------------------------------------------------------------------------------


async def serve(server: RatingServer, host: str, port: int, ready: Callable[[int], None]) -> None:
    """Serve until SIGINT or SIGTERM; `ready` is called with the port (0 lets the system choose one)."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(
        server.app(), access_log=None, shutdown_timeout=SHUTDOWN_S
    )  # an access log would contain addresses
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        ready(runner.addresses[0][1])
        await stop.wait()
    finally:
        await runner.cleanup()
