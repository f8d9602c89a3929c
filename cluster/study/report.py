"""From votes to the report: on the screen, as a page, and in MLflow."""

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

ALL, PAPER, GOLD = "all", "real", "gold"  # whose votes a table counts; they begin metric names


def preference_tables(votes: Votes, stored: StoredStudy, bad_share: float) -> dict[str, Table]:
    """Table 1 of all raters, without the paper's bad workers, and without those who failed gold trials."""
    study = stored.study
    of_real, of_gold = real_rejection_rate(votes, study), gold_failure_rate(votes, study)
    kept = {PAPER: drop_raters(votes, of_real, bad_share), GOLD: drop_raters(votes, of_gold, bad_share)}
    everyone = len(np.unique(votes.rater))
    left_out = {
        name: f"{everyone - len(np.unique(rest.rater))} of {everyone} raters are left out"
        for name, rest in kept.items()
    }
    said = f"more than {100 * bad_share:.0f} %"
    about = {
        ALL: ("All raters", "Nobody is left out; the paper's table counts like this."),
        PAPER: (
            "Without raters who often said that real videos were not realistic",
            f"The paper's filter: {left_out[PAPER]}, who chose the other in {said} of 5 or more trials with one.",
        ),
        GOLD: (
            "Without raters who failed gold trials",
            f"{left_out[GOLD]}, who chose a scrambled video over a real one in {said} of their gold trials.",
        ),
    }
    every = {ALL: votes, **kept}
    return {
        name: Table(title=title, about=text, cells=tuple(preference_table(every[name], study)))
        for name, (title, text) in about.items()
    }


def build_report(votes: Votes, stored: StoredStudy, tables: dict[str, Table], name: str) -> StudyReport:
    """What the page shows."""
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
    seen = minimum_detectable_preference(num, design)
    visible = f"a preference of {100 * seen:.0f} % or more" if seen < 1 else "no preference"
    agreed = "no trial has two votes"
    if alike.trials:
        agreed = f"{100 * alike.share:.0f} % of pairs of votes on one trial agree (50 % by chance), kappa "
        agreed += f"{alike.kappa:.2f}, over {alike.trials:,} trials"
    return [
        ("agreement", agreed),
        ("left side chosen", f"{100 * side_bias(votes):.1f} % of votes"),
        ("gold trials", f"{100 * (1 - np.mean(list(gold.values()))):.0f} % right" if gold else "none"),
        ("design effect", f"{design:.2f}: votes of a cell that count as one independent vote (median)"),
        ("votes to see 55 %", f"{required_votes(0.55, design):,} in a cell, at 5 % and a power of 80 %"),
        ("votes there are", f"{num:,} in a cell (median), which would show {visible}"),
        ("intervals", "95 %, a bootstrap over raters: they hold for other raters of the same clips"),
    ]


def report_metrics(votes: Votes, stored: StoredStudy, tables: dict[str, Table]) -> dict[str, float]:
    """Scalars for MLflow: preference/all/two_stream-over-real/golf and its bounds and votes."""
    found: dict[str, float] = {"votes": len(votes), "raters": len(np.unique(votes.rater))}
    for whose, table in tables.items():
        for cell in table.cells:
            if cell.votes:
                place = f"{whose}/{cell.pair[0]}-over-{cell.pair[1]}/{cell.category}"
                values = {"preference": cell.share, "low": cell.low, "high": cell.high, "votes_in": cell.votes}
                found |= {f"{what}/{place}": float(value) for what, value in values.items()}
    alike, design = agreement(votes, stored.study), median_design_effect(tables[ALL].cells)
    more = {
        "agreement/share": alike.share,
        "agreement/kappa": alike.kappa,
        "left_share": side_bias(votes),
        "power/votes_needed_55": required_votes(0.55, design),
    }
    return found | {name: float(value) for name, value in more.items() if not np.isnan(value)}


def log_report(
    tracker: Tracker, name: str, stored: StoredStudy, metrics: dict[str, float], texts: dict[str, str]
) -> str:
    """Put the report into MLflow, in the one run of this study; its id."""
    plan = stored.study.plan
    params = {"methods": stored.study.methods, "categories": stored.study.categories, **vars(plan)}
    tags = {"kind": "study", "study_hash": stored.digest, "git_commit": git_commit()}
    run = tracker.start(f"{name}-{stored.digest[:32]}", name=name, params=params, tags=tags)
    with run.ending():
        run.metrics(metrics)
        for path, text in texts.items():
            run.text(text, path)
    return run.id
