"""Storage of votes in SQLite or PostgreSQL.

Each vote is stored once, and on disk before it is confirmed. The database holds nothing that identifies a rater.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from cluster.storage.urls import redact
from vgan.errors import InputError
from vgan.study.ratings import Votes

_tables = sa.MetaData()
_studies = sa.Table(
    "studies",
    _tables,
    sa.Column("study", sa.String(64), primary_key=True),
    sa.Column("secret", sa.String(64), nullable=False),
)
_votes = sa.Table(
    "votes",
    _tables,
    sa.Column("study", sa.String(64), primary_key=True),
    sa.Column("rater", sa.String(64), primary_key=True),
    sa.Column("trial", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("chose_left", sa.Boolean, nullable=False),
    sa.Column("milliseconds", sa.Integer, nullable=False),  # from the first frame to the choice
)
_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


@dataclass(frozen=True, kw_only=True)
class Vote:
    """Choice of one rater in one trial."""

    rater: str
    trial: int
    left: bool
    milliseconds: int = 0


class VoteStore:
    """Votes of one study. Several processes may write concurrently."""

    def __init__(self, url: str, study: str) -> None:
        """Open or create the database.

        Args:
            url: sqlite:///FILE or postgresql+psycopg://HOST/NAME; its password comes from PGPASSWORD or ~/.pgpass.
            study: the study's digest.

        Raises:
            InputError: the database cannot be opened or is neither SQLite nor PostgreSQL.
        """
        self.study = study
        try:
            self.engine = sa.create_engine(url)
        except (SQLAlchemyError, ImportError) as error:
            raise InputError(f"cannot use database_url={redact(url)!r}: {error}") from error
        if self.engine.dialect.name not in _INSERT:
            raise InputError(f"database_url= must begin with sqlite:/// or postgresql+psycopg://, got {redact(url)!r}")
        self._insert = _INSERT[self.engine.dialect.name]
        if self.engine.dialect.name == "sqlite":
            sa.event.listen(self.engine, "connect", _make_durable)
        try:
            if self.engine.dialect.name == "sqlite":
                _make_private(self.engine.url.database)
            self._make_tables()
            self.secret = self._find_secret()
        except (SQLAlchemyError, OSError) as error:
            raise InputError(f"cannot use database_url={redact(url)!r}: {str(error).splitlines()[0]}") from error

    def _make_tables(self) -> None:
        """Create missing tables; retry once, as PostgreSQL fails if another process creates them at the same time."""
        for last in (False, True):
            try:
                with self.engine.begin() as connection:
                    for table in _tables.sorted_tables:
                        connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
            except SQLAlchemyError:
                if last:
                    raise
            else:
                return

    def _find_secret(self) -> bytes:
        """Return the signing key of rater tokens, created on first use."""
        row = {"study": self.study, "secret": secrets.token_hex(32)}
        with self.engine.begin() as connection:
            connection.execute(self._insert(_studies).values(row).on_conflict_do_nothing())
            query = sa.select(_studies.c.secret).where(_studies.c.study == self.study)
            return bytes.fromhex(connection.execute(query).scalar_one())

    def put(self, votes: Sequence[Vote]) -> list[bool]:
        """Store votes in one transaction and return for each if the stored choice equals it.

        Stored votes are never changed: a vote sent twice counts once, and a different choice is refused.
        """
        rows = [
            {
                "study": self.study,
                "rater": vote.rater,
                "trial": vote.trial,
                "chose_left": vote.left,
                "milliseconds": vote.milliseconds,
            }
            for vote in votes
        ]
        # A fixed order: two servers that insert the same rows cannot deadlock.
        rows.sort(key=lambda row: (row["rater"], row["trial"]))
        raters = sorted({vote.rater for vote in votes})
        numbers = sorted({vote.trial for vote in votes})
        query = (
            sa.select(_votes.c.rater, _votes.c.trial, _votes.c.chose_left)
            .where(_votes.c.study == self.study)
            .where(_votes.c.rater.in_(raters) & _votes.c.trial.in_(numbers))
        )
        with self.engine.begin() as connection:
            connection.execute(self._insert(_votes).on_conflict_do_nothing(), rows)
            stored = {(rater, trial): left for rater, trial, left in connection.execute(query)}
        return [stored[vote.rater, vote.trial] == vote.left for vote in votes]

    def done(self, rater: str) -> set[int]:
        """Return the trials that a rater has voted on."""
        query = sa.select(_votes.c.trial).where((_votes.c.study == self.study) & (_votes.c.rater == rater))
        with self.engine.connect() as connection:
            return set(connection.execute(query).scalars())

    def all(self) -> Votes:
        """Return all votes, ordered by rater and trial."""
        columns = (_votes.c.rater, _votes.c.trial, _votes.c.chose_left)
        query = sa.select(*columns).where(_votes.c.study == self.study).order_by(*columns[:2])
        with self.engine.connect() as connection:
            rows = connection.execute(query).all()
        rater, trial, left = zip(*rows, strict=True) if rows else ((), (), ())
        return Votes(rater=np.array(rater, str), trial=np.array(trial, np.int64), left=np.array(left, bool))

    def close(self) -> None:
        """Close the connections to the database."""
        self.engine.dispose()


def _make_private(file: str | None) -> None:
    """Create a new database file readable only by its owner, as it holds the signing key of rater tokens."""
    if file and file != ":memory:" and not Path(file).exists():
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch(mode=0o600)


def _make_durable(connection: Any, _record: Any) -> None:
    """Set SQLite to a write-ahead log, so that readers do not wait for writers, synced at each commit."""
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
