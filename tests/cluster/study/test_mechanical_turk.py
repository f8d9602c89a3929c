"""HIT files for Mechanical Turk, and import of results as votes."""

from __future__ import annotations

import csv
import io

import pytest

from cluster.study.mechanical_turk import hits_csv, read_results
from vgan.errors import InputError
from vgan.study.trials import GOLD, PAIR, Study, StudyDesign, make_study
from vgan.viz.study import render_hit

SECRET = b"secret"


def small_study(per_rater: int = 20) -> Study:
    clips = {m: {"all": [f"{m}/{i}" for i in range(9)]} for m in ("two_stream", "one_stream", "real")}
    plan = StudyDesign(trials_per_cell=10, trials_per_rater=per_rater, gold_per_rater=2, static=False, seed=0)
    return make_study(clips, plan)


def results(study: Study, workers: list[str], per_hit: int = 5, **change: str) -> str:
    """Return batch results in Amazon's format: each worker does every HIT and always chooses the first clip."""
    rows = []
    for worker in workers:
        for hit in csv.DictReader(io.StringIO(hits_csv(study, "https://x/clips/", per_hit))):
            row = {"HITId": "h", "WorkerId": worker, "AssignmentStatus": "Approved"}
            for k in range(1, per_hit + 1):
                left = study.trials[int(hit[f"trial_{k}"])].left == 0
                row |= {f"Input.trial_{k}": hit[f"trial_{k}"], f"Answer.choice_{k}": "left" if left else "right"}
            rows.append(row | change)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def test_hits_hold_every_trial_and_names_that_tell_nothing() -> None:
    study = small_study()
    rows = list(csv.DictReader(io.StringIO(hits_csv(study, "https://x/clips/", 5))))
    trials = [int(row[f"trial_{k}"]) for row in rows for k in range(1, 6)]
    assert set(trials) == set(study.numbers(PAIR) + study.numbers(GOLD))
    assert len(trials) - len(set(trials)) < 5
    assert rows[0]["clip_1"] == f"https://x/clips/{int(rows[0]['trial_1']):05d}.mp4"
    assert not any("stream" in value or "real" in value for row in rows for value in row.values())


def test_layout_asks_for_what_the_csv_holds_and_the_import_reads() -> None:
    page = render_hit(3)
    for k in (1, 2, 3):
        assert f"${{clip_{k}}}" in page
        assert page.count(f'name="choice_{k}"') == 2
    assert "choice_4" not in page
    assert page.count("${") == 3  # any other text of this form would be read as a column


def test_results_become_votes_and_workers_ids_are_not_kept() -> None:
    study = small_study(per_rater=100)
    result = read_results(results(study, ["A1WORKER", "A2WORKER"]), study, SECRET)
    assert len(result.votes) == 2 * 34
    assert result.repeated == 2  # the last HIT is filled with repeated trials
    assert len({vote.rater for vote in result.votes}) == 2
    assert not any("WORKER" in vote.rater for vote in result.votes)
    assert all(vote.left == (study.trials[vote.trial].left == 0) for vote in result.votes)
    assert read_results(results(study, ["A1WORKER"]), study, SECRET).votes == result.votes[:34]
    assert {v.rater for v in read_results(results(study, ["A1WORKER"]), study, b"x").votes}.isdisjoint(
        {v.rater for v in result.votes}
    )


def test_results_beyond_the_cap_and_rejected_ones_do_not_count() -> None:
    study = small_study(per_rater=20)
    result = read_results(results(study, ["A"]), study, SECRET)
    assert (len(result.votes), result.capped) == (20, 14)
    refused = read_results(results(study, ["A"], AssignmentStatus="Rejected"), study, SECRET)
    assert (len(refused.votes), refused.rejected) == (0, 7)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"Answer.choice_2": ""}, "line 2: Input.trial_2 has answer ''"),
        ({"Input.trial_1": "999"}, "not a trial of this"),
    ],
)
def test_results_that_do_not_fit_name_the_line(change: dict[str, str], said: str) -> None:
    study = small_study()
    with pytest.raises(InputError, match=said):
        read_results(results(study, ["A"], **change), study, SECRET)
    with pytest.raises(InputError, match=r"not the results file"):
        read_results("a,b\n1,2\n", study, SECRET)
