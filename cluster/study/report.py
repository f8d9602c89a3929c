"""Report of a human study as text tables, as an HTML page, and in MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from cluster.observability.mlflow_tracker import Tracker
from cluster.runtime.provenance import git_commit
from cluster.study.study_store import StoredStudy
from vgan.study.ratings import (
    MEAN,
    Cell,
    Votes,
    agreement,
    drop_raters,
    gold_failure_rate,
    median_design_effect,
    minimum_detectable_preference,
    preference_table,
    real_rejection_rate,
    required_votes,
    side_bias,
)
from vgan.viz.study import StudyReport, Table

ALL, PAPER, GOLD = "all", "real", "gold"  # rater filters of the tables, used as prefixes of metric names


def preference_tables(votes: Votes, stored: StoredStudy, max_error_rate: float) -> dict[str, Table]:
    """Compute Table 1 of the paper for all raters, with the paper's filter, and without raters who failed gold trials.

    Args:
        votes: all votes.
        stored: the study.
        max_error_rate: maximum share of wrong answers of a retained rater, 0..1.
    """
    study = stored.study
    of_real, of_gold = real_rejection_rate(votes, study), gold_failure_rate(votes, study)
    retained = {PAPER: drop_raters(votes, of_real, max_error_rate), GOLD: drop_raters(votes, of_gold, max_error_rate)}
    everyone = len(np.unique(votes.rater))
    left_out = {
        name: f"{everyone - len(np.unique(rest.rater))} of {everyone} raters are excluded"
        for name, rest in retained.items()
    }
    limit = f"more than {100 * max_error_rate:.0f} %"
    about = {
        ALL: ("All raters", "No rater is excluded, as in the paper's table."),
        PAPER: (
            "Without raters who often rejected real videos",
            f"The paper's filter: {left_out[PAPER]}; they rejected the real video in {limit} of 5 or more trials.",
        ),
        GOLD: (
            "Without raters who failed gold trials",
            f"{left_out[GOLD]}; they preferred a scrambled to a real video in {limit} of their gold trials.",
        ),
    }
    filtered = {ALL: votes, **retained}
    return {
        name: Table(title=title, about=text, cells=tuple(preference_table(filtered[name], study)))
        for name, (title, text) in about.items()
    }


def build_report(votes: Votes, stored: StoredStudy, tables: dict[str, Table], name: str) -> StudyReport:
    """Collect the contents of the report page."""
    cells = tables[ALL].cells
    lineage = (("study", stored.digest), ("git commit", git_commit() or "unknown"))
    return StudyReport(
        title=f"Human preference: {name}",
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        votes=len(votes),
        raters=len(np.unique(votes.rater)),
        tables=tuple(tables.values()),
        worth=tuple(_reliability(votes, stored, cells)),
        lineage=lineage,
    )


def _reliability(votes: Votes, stored: StoredStudy, cells: Sequence[Cell]) -> list[tuple[str, str]]:
    alike, design = agreement(votes, stored.study), median_design_effect(cells)
    num = int(np.median([cell.votes for cell in cells if cell.category != MEAN]))
    gold = gold_failure_rate(votes, stored.study)
    detectable = minimum_detectable_preference(num, design)
    visible = f"a preference of {100 * detectable:.0f} % or more" if detectable < 1 else "no preference"
    agreed = "no trial has two votes"
    if alike.trials:
        agreed = f"{100 * alike.share:.0f} % of pairs of votes on one trial agree (50 % by chance), kappa "
        agreed += f"{alike.kappa:.2f}, over {alike.trials:,} trials"
    return [
        ("agreement", agreed),
        ("left side chosen", f"{100 * side_bias(votes):.1f} % of votes"),
        ("gold trials", f"{100 * (1 - np.mean(list(gold.values()))):.0f} % correct" if gold else "none"),
        ("design effect", f"{design:.2f}: votes per independent vote in a cell (median)"),
        ("votes to detect 55 %", f"{required_votes(0.55, design):,} per cell, at significance 5 % and power 80 %"),
        ("votes collected", f"{num:,} per cell (median), enough to detect {visible}"),
        ("intervals", "95 %, bootstrap over raters: valid for other raters of the same clips"),
    ]


def report_metrics(votes: Votes, stored: StoredStudy, tables: dict[str, Table]) -> dict[str, float]:
    """Return scalars for MLflow, e.g. preference/all/two_stream-over-real/golf with its bounds and number of votes."""
    metrics: dict[str, float] = {"votes": len(votes), "raters": len(np.unique(votes.rater))}
    for raters, table in tables.items():
        for cell in table.cells:
            if cell.votes:
                name = f"{raters}/{cell.pair[0]}-over-{cell.pair[1]}/{cell.category}"
                values = {"preference": cell.share, "low": cell.low, "high": cell.high, "votes_in": cell.votes}
                metrics |= {f"{quantity}/{name}": float(value) for quantity, value in values.items()}
    alike, design = agreement(votes, stored.study), median_design_effect(tables[ALL].cells)
    more = {
        "agreement/share": alike.share,
        "agreement/kappa": alike.kappa,
        "left_share": side_bias(votes),
        "power/votes_needed_55": required_votes(0.55, design),
    }
    return metrics | {name: float(value) for name, value in more.items() if not np.isnan(value)}


def log_report(
    tracker: Tracker, name: str, stored: StoredStudy, metrics: dict[str, float], texts: dict[str, str]
) -> str:
    """Log the report to the MLflow run of this study and return the id of the run."""
    plan = stored.study.plan
    params = {"methods": stored.study.methods, "categories": stored.study.categories, **vars(plan)}
    tags = {"kind": "study", "study_hash": stored.digest, "git_commit": git_commit()}
    run = tracker.start(f"{name}-{stored.digest[:32]}", name=name, params=params, tags=tags)
    with run.run_context():
        run.metrics(metrics)
        for path, text in texts.items():
            run.text(text, path)
    return run.id
