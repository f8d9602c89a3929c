"""A study on Mechanical Turk: what to upload, and its results as votes.

The clips are uploaded as they are to any web address: their names tell nothing. Of workers' ids only a keyed hash is
kept: the same worker has the same one in this database, and nobody finds the id from it.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.study.study_store import clip_filename
from cluster.study.vote_store import Vote
from vgan.errors import InputError
from vgan.study.trials import GOLD, PAIR, Study

_WORKER, _STATUS = "WorkerId", "AssignmentStatus"


@dataclass(frozen=True, kw_only=True)
class ImportedBatch:
    """What a results file holds."""

    votes: tuple[Vote, ...]
    rejected: int  # assignments that were refused payment
    capped: int  # votes beyond what one worker may give
    repeated: int  # votes of a worker on a trial that he has voted on before


def hits_csv(study: Study, media: str, per_hit: int) -> str:
    """A row for each HIT: trials and the addresses of their clips, gold trials spread evenly among the others."""
    if per_hit < 1:
        raise InputError(f"per_hit must be at least 1, got {per_hit}")
    pairs, gold = study.numbers(PAIR), study.numbers(GOLD)
    mixed = sorted(
        [((k + 0.5) / len(pairs), n) for k, n in enumerate(pairs)]
        + [((k + 0.5) / len(gold), n) for k, n in enumerate(gold)]
    )
    numbers = [number for _, number in mixed]
    # The last HIT is filled up from the beginning.
    numbers += (numbers * per_hit)[: -len(numbers) % per_hit]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([f"{what}_{k}" for k in range(1, per_hit + 1) for what in ("trial", "clip")])
    for start in range(0, len(numbers), per_hit):
        row = numbers[start : start + per_hit]
        writer.writerow([value for n in row for value in (n, f"{media.rstrip('/')}/{clip_filename(n)}")])
    return out.getvalue()


def read_results(text: str, study: Study, secret: bytes) -> ImportedBatch:
    """The votes in a batch's results file.

    Each worker counts for as many trials as the study allows a rater, the first ones of the file.

    Raises:
        InputError: it is none, or of another study.
    """
    rows = csv.DictReader(io.StringIO(text))
    asked = [name for name in rows.fieldnames or [] if name.startswith("Input.trial_")]
    if not asked or _WORKER not in (rows.fieldnames or []):
        raise InputError(
            "results= is no results file of a batch made from hits.csv: no columns WorkerId and Input.trial_1"
        )
    votes: dict[tuple[str, int], Vote] = {}
    given, rejected, capped, repeated = Counter[str](), 0, 0, 0
    for line, row in enumerate(rows, start=2):
        if row.get(_STATUS) == "Rejected":
            rejected += 1
            continue
        rater = _pseudonym(row[_WORKER], secret)
        for vote in _row_votes(row, asked, rater, study, line):
            if (rater, vote.trial) in votes:
                repeated += 1
            elif given[rater] >= study.plan.per_rater:
                capped += 1
            else:
                votes[rater, vote.trial] = vote
                given[rater] += 1
    return ImportedBatch(votes=tuple(votes.values()), rejected=rejected, capped=capped, repeated=repeated)


def _row_votes(row: dict[str, str], asked: Sequence[str], rater: str, study: Study, line: int) -> list[Vote]:
    found = []
    for name in asked:
        number, choice = row[name], row.get(f"Answer.choice_{name.rpartition('_')[2]}", "")
        if choice not in ("left", "right"):
            raise InputError(f"results= line {line}: {name} has the answer {choice!r}, not left or right")
        if not number.isdecimal() or int(number) not in range(len(study.trials)):
            raise InputError(f"results= line {line}: {name} is {number!r}, no trial of this study")
        found.append(Vote(rater=rater, trial=int(number), left=choice == "left"))
    return found


def _pseudonym(worker: str, secret: bytes) -> str:
    return "turk-" + hmac.new(secret, f"worker {worker}".encode(), hashlib.sha256).hexdigest()[:16]
