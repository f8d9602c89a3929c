"""Load of 200 concurrent raters and 20,000 votes with one killed server; `make bench-study` prints the figures."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from study_folder import draw_folders, make_words

from cluster.study.config import StudyConfig
from cluster.study.rating_server import make_token
from cluster.study.study_store import read_study
from cluster.study.vote_store import VoteStore
from jobs import cli, study

RATERS, VOTES, THINK_S = 200, 100, 1.28  # a clip's length, which the page waits for
KILL_AFTER_S = 20.0

pytestmark = pytest.mark.slow


@dataclass
class Seen:
    """Responses and errors of all raters."""

    vote_s: list[float] = field(default_factory=list)  # latency of answered votes
    clip_s: list[float] = field(default_factory=list)
    confirmed: dict[tuple[str, int], bool] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    broken: int = 0  # requests that the killed server left without an answer


def start(words: list[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    assert "serving" in process.stdout.readline()
    return process


async def rate(http: aiohttp.ClientSession, base: str, rater: int, given: str, seen: Seen) -> None:
    """Simulate a rater like the page: load a clip, watch it, send the vote until it is confirmed."""
    rng, headers = random.Random(rater), {"Authorization": f"Bearer {given}"}

    async def ask(method: str, path: str, times: list[float], **options: object) -> bytes:
        while True:
            began = time.perf_counter()
            try:
                async with http.request(method, base + path, headers=headers, **options) as answer:  # type: ignore[arg-type]
                    body = await answer.read()
            except (aiohttp.ClientError, ConnectionError):
                seen.broken += 1
                await asyncio.sleep(1)
                continue
            seen.statuses[answer.status] += 1
            if answer.status == 200:
                times.append(time.perf_counter() - began)
                return body
            assert answer.status == 429, answer.status
            await asyncio.sleep(1)

    await asyncio.sleep(rng.random() * THINK_S)
    async with http.get(base + "/session", headers=headers) as answer:
        trials = (await answer.json())["trials"]
    for number in trials[:VOTES]:
        await ask("GET", f"/clips/{number}", seen.clip_s)
        await asyncio.sleep(THINK_S * rng.uniform(0.5, 1.5))
        left = rng.random() < 0.5
        vote = {"trial": number, "left": left, "milliseconds": 1000}
        await ask("POST", "/votes", seen.vote_s, json=vote)
        seen.confirmed[str(rater), number] = left


def test_votes_of_200_raters_survive_a_server_killed_among_them(tmp_path: Path) -> None:
    draw_folders(tmp_path, num_frames=32)
    words = make_words(tmp_path, num_frames=32, trials_per_cell=40, trials_per_rater=VOTES, gold_per_rater=4)
    assert cli.run(study.main, StudyConfig, study.ABOUT, words) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = [sys.executable, "-m", "jobs.study", "action=serve", f"out={tmp_path}/study", f"port={port}"]
    process, seen = start(serve), Seen()
    store = VoteStore(f"sqlite:///{tmp_path}/study/votes.db", read_study(f"{tmp_path}/study").digest)

    async def kill_and_start_again() -> None:
        nonlocal process
        await asyncio.sleep(KILL_AFTER_S)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = await asyncio.to_thread(start, serve)

    async def everyone() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            base = f"http://127.0.0.1:{port}"
            raters = [rate(http, base, k, make_token(k, store.secret), seen) for k in range(RATERS)]
            await asyncio.gather(kill_and_start_again(), *raters)

    began = time.perf_counter()
    try:
        asyncio.run(everyone())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    seconds, result = time.perf_counter() - began, store.all()
    for what, times in (("votes", seen.vote_s), ("clips", seen.clip_s)):
        p50, p99, worst = 1000 * np.percentile(times, [50, 99, 100])
        print(f"{len(times)} {what} in {seconds:.0f} s: p50 {p50:.1f} ms, p99 {p99:.1f} ms, worst {worst:.0f} ms")
    print(f"{seen.broken} requests without an answer from the killed server; answers {dict(seen.statuses)}")
    print(f"load of the machine {os.getloadavg()[0]:.1f}")
    stored = {
        (r, t): left for r, t, left in zip(result.rater, result.trial.tolist(), result.left.tolist(), strict=True)
    }
    assert seen.broken > 0
    assert len(result) == len(stored) == RATERS * VOTES
    assert stored == seen.confirmed
