"""Storage of votes: each is stored once, even if sent repeatedly or by several processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from cluster.study.vote_store import Vote, VoteStore
from vgan.errors import InputError

WRITER = """
import sys
from cluster.study.vote_store import Vote, VoteStore
store = VoteStore(sys.argv[1], "s")
for n in range(100000):
    store.put([Vote(rater="a", trial=n, left=n % 3 == 0)])
    print(n, flush=True)
"""


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """Start a separate PostgreSQL server, if its programs and driver are installed; root starts it as nobody."""
    pytest.importorskip("psycopg", reason="no PostgreSQL driver: pip install 'scene-dynamics[postgres]'")
    if not shutil.which("initdb"):
        pytest.skip("no PostgreSQL programs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="postgres-") as scratch:
        if os.geteuid() == 0:
            shutil.chown(scratch, "nobody")
        run = partial(subprocess.run, check=True, cwd=scratch, user="nobody" if os.geteuid() == 0 else None)
        data = f"{scratch}/data"
        run(["initdb", "-D", data, "-U", "study", "-A", "trust"], stdout=subprocess.DEVNULL)
        server = ["pg_ctl", "-D", data, "-w", "-l", f"{scratch}/log", "-o", f"-p {port} -k {scratch}"]
        run([*server, "start"], stdout=subprocess.DEVNULL)
        try:
            yield f"postgresql+psycopg://study@127.0.0.1:{port}/postgres"
        finally:
            run([*server, "-m", "fast", "stop"], stdout=subprocess.DEVNULL)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/votes.db" if request.param == "sqlite" else request.getfixturevalue("postgres")


def votes_of(rater: str, num: int = 20) -> list[Vote]:
    return [Vote(rater=rater, trial=n, left=n % 3 == 0, milliseconds=n) for n in range(num)]


def test_vote_sent_again_counts_once_and_another_choice_is_refused(url: str) -> None:
    store = VoteStore(url, "again")
    assert store.put(votes_of("a")) == [True] * 20
    assert store.put(votes_of("a")) == [True] * 20
    assert store.put([Vote(rater="a", trial=3, left=False)]) == [False]
    first = Vote(rater="b", trial=0, left=True)
    assert store.put([first, Vote(rater="b", trial=0, left=False), first]) == [True, False, True]
    result = store.all()
    assert len(result) == 21
    assert result.left[result.rater == "a"].tolist() == [n % 3 == 0 for n in range(20)]
    assert store.done("a") == set(range(20))
    assert store.done("c") == set()
    store.close()


def test_votes_of_many_writers_at_once_are_all_there(url: str) -> None:
    def write(rater: int) -> None:
        store = VoteStore(url, "many")
        for vote in votes_of(f"r{rater}") + votes_of("everyone"):
            store.put([vote])
        store.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    store = VoteStore(url, "many")
    assert len(store.all()) == 9 * 20
    store.close()


def test_studies_in_one_database_have_votes_and_secrets_of_their_own(url: str) -> None:
    one, two, again = VoteStore(url, "one"), VoteStore(url, "two"), VoteStore(url, "one")
    one.put(votes_of("a", 2))
    assert len(two.all()) == 0
    assert one.secret == again.secret != two.secret
    for store in (one, two, again):
        store.close()


def test_writer_killed_has_stored_every_vote_that_it_had_confirmed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/votes.db"
    process = subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    confirmed = [int(process.stdout.readline()) for _ in range(30)]
    process.send_signal(signal.SIGKILL)
    confirmed += [int(line) for line in process.stdout if line.endswith("\n")]
    process.wait()
    result = VoteStore(url, "s").all()
    assert set(confirmed) <= set(result.trial.tolist())
    assert len(result) <= len(confirmed) + 1
    assert (result.left == (result.trial % 3 == 0)).all()


def test_database_file_is_its_owners_alone(tmp_path: Path) -> None:
    VoteStore(f"sqlite:///{tmp_path}/new/votes.db", "s").close()
    assert stat.S_IMODE((tmp_path / "new" / "votes.db").stat().st_mode) == 0o600


@pytest.mark.parametrize("url", ["mysql://h/n", "nonsense", "sqlite:////proc/none/votes.db"])
def test_database_that_cannot_be_used_is_named(url: str) -> None:
    with pytest.raises(InputError, match="database_url="):
        VoteStore(url, "s")
