"""Rating server over real HTTP: raters complete their session; all others are refused."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from study_folder import draw_folders, make_words, serving

from cluster.study.config import StudyConfig
from cluster.study.rating_server import Limits, RatingServer, make_token, verify_token
from cluster.study.study_store import StoredStudy, read_study
from cluster.study.vote_store import VoteStore
from jobs import cli, study
from vgan.study.trials import PRACTICE, rater_session

LOOSE = Limits(per_second=1e6, burst=1e6, bad_per_second=1e6, bad_burst=1e6)
Visit = Callable[["Rater"], Coroutine[Any, Any, None]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("study")
    draw_folders(place)
    assert cli.run(study.main, StudyConfig, study.ABOUT, make_words(place)) == 0
    return place


@pytest.fixture
def stored(place: Path) -> StoredStudy:
    return read_study(f"{place}/study")


@pytest.fixture
def store(stored: StoredStudy, tmp_path: Path) -> VoteStore:
    return VoteStore(f"sqlite:///{tmp_path}/votes.db", stored.digest)


class Rater:
    """Client that sends the same requests as the page."""

    def __init__(self, http: aiohttp.ClientSession, base: str, given: str) -> None:
        self.http, self.base, self.token = http, base, given

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {self.token}"} | options.pop("headers", {})
        async with self.http.request(method, self.base + path, headers=headers, **options) as answer:
            return answer.status, await answer.read()

    async def vote(self, trial: Any, left: Any = True, milliseconds: Any = 900) -> int:
        body = {"trial": trial, "left": left, "milliseconds": milliseconds}
        return (await self.ask("POST", "/votes", data=json.dumps(body)))[0]


def visit(place: Path, stored: StoredStudy, store: VoteStore, what: Visit, limits: Limits = LOOSE) -> None:
    """Run an action as rater 3 on a separate server."""

    async def all_of_it() -> None:
        server = RatingServer(stored, f"{place}/study", store, limits)
        async with serving(server) as base, aiohttp.ClientSession() as http:
            await what(Rater(http, base, make_token(3, store.secret)))

    asyncio.run(all_of_it())


def test_rater_does_a_session_and_comes_back_to_none_left(place: Path, stored: StoredStudy, store: VoteStore) -> None:
    async def rate(rater: Rater) -> None:
        status, body = await rater.ask("GET", "/session")
        result = json.loads(body)
        assert status == 200
        assert result["trials"] == rater_session(stored.study, 3)
        sizes = set()
        for number in result["trials"] + [p["trial"] for p in result["practice"]]:
            status, clip = await rater.ask("GET", f"/clips/{number}")
            assert status == 200
            sizes.add(len(clip))
        assert len(sizes) == 1  # files of static and moving clips have the same size
        for number in result["trials"]:
            assert await rater.vote(number, left=number % 2 == 0) == 200
        assert json.loads((await rater.ask("GET", "/session"))[1])["trials"] == []

    visit(place, stored, store, rate)
    votes = store.all()
    assert sorted(votes.trial) == sorted(rater_session(stored.study, 3))
    assert (votes.left == (votes.trial % 2 == 0)).all()
    assert set(votes.rater) == {"3"}


def test_answers_do_not_tell_one_trial_from_another(place: Path, stored: StoredStudy, store: VoteStore) -> None:
    async def look(rater: Rater) -> None:
        headers = set()
        for number in rater_session(stored.study, 3):
            async with rater.http.get(
                f"{rater.base}/clips/{number}", headers={"Authorization": f"Bearer {rater.token}"}
            ) as answer:
                headers.add(tuple((k, v) for k, v in answer.headers.items() if k != "Date"))
                clip = await answer.read()
                assert not any(name in clip for name in (b"stream", b"real", b"static", b"sample"))
        assert len(headers) == 1
        told = (await rater.ask("GET", "/session"))[1]
        assert b"stream" not in told
        assert b"static" not in told
        async with rater.http.get(rater.base + "/") as answer:
            assert answer.headers["Server"] == "study"
            assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
            assert answer.headers["Referrer-Policy"] == "no-referrer"

    visit(place, stored, store, look)


def test_tampered_tokens_are_refused(place: Path, stored: StoredStudy, store: VoteStore) -> None:
    good = make_token(3, store.secret)
    other = VoteStore("sqlite://", "another study")
    bad = [
        "",
        "3",
        "3.",
        "4" + good[1:],
        good[:-1],
        good + "0",
        good.upper(),
        "³" + good[1:],
        make_token(3, other.secret),
    ]
    bad += ["-1" + good[1:], "03" + good[1:], "9" * 400, "Bearer", good.replace(".", "/")]
    assert [verify_token(given, store.secret) for given in bad] == [None] * len(bad)
    assert verify_token(good, store.secret) == 3

    async def knock(rater: Rater) -> None:
        trial = rater_session(stored.study, 3)[0]
        for rater.token in [b for b in bad if b.isascii()]:
            assert (await rater.ask("GET", "/session"))[0] == 401
            assert (await rater.ask("GET", f"/clips/{trial}"))[0] == 401
            assert await rater.vote(trial) == 401

    visit(place, stored, store, knock)
    assert len(store.all()) == 0


def test_replayed_vote_counts_once_and_a_changed_one_is_refused(
    place: Path, stored: StoredStudy, store: VoteStore
) -> None:
    trial, other = rater_session(stored.study, 3)[:2]

    async def replay(rater: Rater) -> None:
        assert [await rater.vote(trial) for _ in range(3)] == [200, 200, 200]
        assert await rater.vote(trial, left=False) == 409
        at_once = await asyncio.gather(*(rater.vote(other, left=k % 2 == 0) for k in range(20)))
        assert sorted(at_once) == [200] * 10 + [409] * 10

    visit(place, stored, store, replay)
    assert len(store.all()) == 2
    assert store.all().left[store.all().trial == trial].tolist() == [True]


def test_votes_outside_the_session_or_of_another_form_are_refused(
    place: Path, stored: StoredStudy, store: VoteStore
) -> None:
    mine = rater_session(stored.study, 3)
    foreign = next(n for n in range(len(stored.study.trials)) if n not in mine)

    async def send(rater: Rater) -> None:
        assert await rater.vote(foreign) == 404
        assert await rater.vote(stored.study.numbers(PRACTICE)[0]) == 404
        assert await rater.vote(10**9) == 404
        for trial, left, ms in [
            ("1", True, 1),
            (True, True, 1),
            (mine[0], 1, 1),
            (mine[0], True, -1),
            (mine[0], True, 1e9),
        ]:
            assert await rater.vote(trial, left, ms) == 400
        bodies = [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 400, b'{"trial": 1}', b'{"trial": NaN}']
        assert {(await rater.ask("POST", "/votes", data=body))[0] for body in bodies} == {400}

    visit(place, stored, store, send)
    assert len(store.all()) == 0


def test_oversized_bodies_are_refused(place: Path, stored: StoredStudy, store: VoteStore) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    async def send(rater: Rater) -> None:
        assert (await rater.ask("POST", "/votes", data=b" " * 600))[0] == 413
        assert (await rater.ask("POST", "/votes", data=chunks()))[0] == 413
        assert await rater.vote(rater_session(stored.study, 3)[0]) == 200  # and the server continues

    visit(place, stored, store, send)


def test_paths_lead_to_nothing_but_the_routes(place: Path, stored: StoredStudy, store: VoteStore) -> None:
    async def walk(rater: Rater) -> None:
        paths = ["/study.json", "/votes.db", "/clips/", "/clips/study.json", "/clips/00000.mp4", "/clips/-1"]
        paths += ["/clips/../study.json", "/clips/..%2fstudy.json", "/clips/%2e%2e/study.json", "/clips/99999"]
        paths += ["/clips/0%00", "/..%2f..%2fetc/passwd", "//etc/passwd", "/clips/٣"]
        for path in paths:
            _, _, tail = rater.base.partition("//")
            host, _, port = tail.partition(":")
            reader, writer = await asyncio.open_connection(
                host, int(port)
            )  # raw socket, as HTTP clients normalize paths
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {rater.token}\r\n\r\n".encode())
            status = int((await reader.readline()).split()[1])
            writer.close()
            assert status in (400, 404), path
        for method in ("PUT", "DELETE", "POST"):
            assert (await rater.ask(method, "/session"))[0] == 405

    visit(place, stored, store, walk)


def test_rater_who_asks_too_often_waits_and_strangers_do_not_slow_raters(
    place: Path, stored: StoredStudy, store: VoteStore
) -> None:
    async def hurry(rater: Rater) -> None:
        result = [(await rater.ask("GET", "/session"))[0] for _ in range(5)]
        assert result == [200] * 3 + [429] * 2
        rater.token = "3.0"
        assert [(await rater.ask("GET", "/session"))[0] for _ in range(4)] == [401] * 2 + [429] * 2
        rater.token = make_token(4, store.secret)
        assert (await rater.ask("GET", "/session"))[0] == 200

    slow = Limits(per_second=1e-3, burst=3, bad_per_second=1e-3, bad_burst=2)
    visit(place, stored, store, hurry, slow)


def test_database_that_is_away_is_told_and_the_vote_can_be_sent_again(
    place: Path, stored: StoredStudy, store: VoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, put = rater_session(stored.study, 3)[0], store.put

    async def send(rater: Rater) -> None:
        monkeypatch.setattr(store, "put", lambda _votes: 1 / 0)
        assert await rater.vote(trial) == 503
        monkeypatch.setattr(store, "put", put)
        assert await rater.vote(trial) == 200

    visit(place, stored, store, send)


def test_job_serves_until_it_is_stopped_and_goes_on_with_what_it_had(place: Path) -> None:
    words = [sys.executable, "-m", "jobs.study", "action=serve", f"out={place}/study", "port=0"]
    links = subprocess.run(
        [*words[:3], "action=links", f"out={place}/study", "raters=4"], capture_output=True, text=True
    )
    given = links.stdout.splitlines()[3].partition("#")[2]
    for turn in range(2):
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith(f"{turn} votes so far")
        base = said.split()[-1]

        async def once(base: str = base, turn: int = turn) -> None:
            async with aiohttp.ClientSession() as http:
                rater = Rater(http, base, given)
                left = json.loads((await rater.ask("GET", "/session"))[1])["trials"]
                assert len(left) == 8 - turn
                assert await rater.vote(left[0]) == 200

        asyncio.run(once())
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 130
