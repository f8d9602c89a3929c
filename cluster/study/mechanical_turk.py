"""Studies on Amazon Mechanical Turk: the HIT file to upload, and import of its results as votes.

Clips can be uploaded unchanged to any web address: their names reveal nothing. Worker ids are stored only as keyed
hashes, which are constant within a database and cannot be inverted without its key.
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
    """Votes of a results file, with counts of those not imported."""

    votes: tuple[Vote, ...]
    rejected: int  # assignments whose payment was rejected
    capped: int  # votes beyond the maximum per worker
    repeated: int  # repeated votes of a worker on the same trial


def hits_csv(study: Study, media: str, per_hit: int) -> str:
    """Return CSV text with one row per HIT: trials and clip URLs, with gold trials spread evenly among the others.

    Args:
        study: trials.
        media: URL of the folder with the clips.
        per_hit: trials per HIT, at least 1.

    Raises:
        InputError: per_hit is below 1.
    """
    if per_hit < 1:
        raise InputError(f"per_hit must be at least 1, got {per_hit}")
    pairs, gold = study.numbers(PAIR), study.numbers(GOLD)
    mixed = sorted(
        [((k + 0.5) / len(pairs), n) for k, n in enumerate(pairs)]
        + [((k + 0.5) / len(gold), n) for k, n in enumerate(gold)]
    )
    numbers = [number for _, number in mixed]
    # The last HIT is filled with the first trials.
    numbers += (numbers * per_hit)[: -len(numbers) % per_hit]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([f"{column}_{k}" for k in range(1, per_hit + 1) for column in ("trial", "clip")])
    for start in range(0, len(numbers), per_hit):
        row = numbers[start : start + per_hit]
        writer.writerow([value for n in row for value in (n, f"{media.rstrip('/')}/{clip_filename(n)}")])
    return out.getvalue()


def read_results(text: str, study: Study, secret: bytes) -> ImportedBatch:
    """Read the votes from the text of a batch results file.

    For each worker, the first votes in the file count, up to the number of trials per rater in the study.

    Raises:
        InputError: the text is not a results file, or belongs to another study.
    """
    rows = csv.DictReader(io.StringIO(text))
    columns = [name for name in rows.fieldnames or [] if name.startswith("Input.trial_")]
    if not columns or _WORKER not in (rows.fieldnames or []):
        raise InputError(
            "results= is not the results file of a batch made from hits.csv: columns WorkerId or Input.trial_1 missing"
        )
    votes: dict[tuple[str, int], Vote] = {}
    accepted, rejected, capped, repeated = Counter[str](), 0, 0, 0
    for line, row in enumerate(rows, start=2):
        if row.get(_STATUS) == "Rejected":
            rejected += 1
            continue
        rater = _pseudonym(row[_WORKER], secret)
        for vote in _row_votes(row, columns, rater, study, line):
            if (rater, vote.trial) in votes:
                repeated += 1
            elif accepted[rater] >= study.plan.trials_per_rater:
                capped += 1
            else:
                votes[rater, vote.trial] = vote
                accepted[rater] += 1
    return ImportedBatch(votes=tuple(votes.values()), rejected=rejected, capped=capped, repeated=repeated)


def _row_votes(row: dict[str, str], columns: Sequence[str], rater: str, study: Study, line: int) -> list[Vote]:
    votes = []
    for name in columns:
        number, choice = row[name], row.get(f"Answer.choice_{name.rpartition('_')[2]}", "")
        if choice not in ("left", "right"):
            raise InputError(f"results= line {line}: {name} has answer {choice!r}; expected left or right")
        if not number.isdecimal() or int(number) not in range(len(study.trials)):
            raise InputError(f"results= line {line}: {name} is {number!r}, which is not a trial of this study")
        votes.append(Vote(rater=rater, trial=int(number), left=choice == "left"))
    return votes


def _pseudonym(worker: str, secret: bytes) -> str:
    return "turk-" + hmac.new(secret, f"worker {worker}".encode(), hashlib.sha256).hexdigest()[:16]
