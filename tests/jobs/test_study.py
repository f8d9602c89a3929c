"""`jobs.study` from folders of clips to a report in MLflow."""

from __future__ import annotations

import csv
import hashlib
import sys
from pathlib import Path

import av
import mlflow
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "cluster"))
from study_folder import draw_folders, make_words

from cluster.study.config import StudyConfig
from cluster.study.study_store import read_study
from cluster.study.vote_store import Vote, VoteStore
from jobs import cli, study
from vgan.study.trials import rater_session


def run(*words: str) -> int:
    return cli.run(study.main, StudyConfig, study.ABOUT, words)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("study")
    draw_folders(place)
    assert run(*make_words(place)) == 0
    return place


def pictures(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(int)


def test_make_shows_each_trials_clips_on_the_sides_that_it_says(place: Path) -> None:
    for number, trial in enumerate(read_study(f"{place}/study").study.trials[:12]):
        both = pictures(place / "study" / "clips" / f"{number:05d}.mp4")
        assert both.shape == (8, 128, 256, 3)
        for clip, side in ((trial.first, trial.left), (trial.second, 1 - trial.left)):
            shown = both[:, ::2, side * 128 : side * 128 + 128 : 2]
            if clip.method == "static":
                assert np.abs(np.diff(shown, axis=0)).mean() < 2
            elif clip.method != "scrambled":
                assert np.abs(shown - pictures(Path(clip.source))).mean() < 5


def test_make_writes_files_of_one_length_that_are_the_same_when_made_again(place: Path, tmp_path: Path) -> None:
    files = sorted((place / "study" / "clips").iterdir())
    assert len({file.stat().st_size for file in files}) == 1
    words = [word.replace(f"out={place}", f"out={tmp_path}") for word in make_words(place)]
    assert run(*words) == 0
    again = [tmp_path / "study" / "clips" / file.name for file in files]
    digests = [[hashlib.sha256(f.read_bytes()).hexdigest() for f in some] for some in (files, again)]
    assert digests[0] == digests[1]
    assert read_study(f"{place}/study").digest == read_study(f"{tmp_path}/study").digest


def test_report_prints_the_table_writes_the_page_and_logs_to_mlflow(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = read_study(f"{place}/study")
    db, tracking = f"database_url=sqlite:///{tmp_path}/votes.db", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    store = VoteStore(db.removeprefix("database_url="), stored.digest)
    for rater in range(12):
        first = [stored.study.trials[n].left == 0 for n in rater_session(stored.study, rater)]
        votes = zip(rater_session(stored.study, rater), first, strict=True)
        store.put([Vote(rater=str(rater), trial=n, left=left) for n, left in votes])
    words = ["action=report", f"out={place}/study", db, tracking]
    assert run(*words) == run(*words) == 0
    said = capsys.readouterr().out
    assert "two_stream over real" in said
    assert "[paper 18]" in said  # the mean beside its own
    page = (place / "study" / "report.html").read_text()
    assert "Table 1" in page
    assert "kappa" in page
    assert not any(word in page for word in ("src=", "href=", "url(", "<script"))  # nothing is fetched
    client = mlflow.MlflowClient(tracking.partition("=")[2])
    (logged,) = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics["preference/all/two_stream-over-real/mean"] == 1.0
    assert logged.data.metrics["votes"] == 12 * 8
    assert logged.data.tags["study_hash"] == stored.digest
    assert {a.path for a in client.list_artifacts(logged.info.run_id)} == {"report.html", "report.txt"}


def test_export_and_import_take_a_batch_there_and_back(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, db = f"out={place}/study", f"database_url=sqlite:///{tmp_path}/votes.db"
    assert run("action=export", out, "media_url=https://x/clips", "per_hit=4") == 0
    rows = list(csv.DictReader((place / "study" / "hits.csv").read_text().splitlines()))
    assert "${clip_4}" in (place / "study" / "hit.html").read_text()
    answers = [
        {"WorkerId": f"W{k}", "AssignmentStatus": "Approved"}
        | {f"Input.{name}": value for name, value in row.items()}
        | {f"Answer.choice_{i}": "left" for i in range(1, 5)}
        for k, row in enumerate(rows)
    ]
    with (tmp_path / "batch.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(answers[0]))
        writer.writeheader()
        writer.writerows(answers)
    capsys.readouterr()
    for added in (4 * len(rows), 0):
        assert run("action=import", out, db, f"results={tmp_path}/batch.csv") == 0
        assert f"{added} votes added" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["action=judge"], "action must be one of"),
        (["action=make"], "methods= is required"),
        (["action=serve"], "no study at"),
        (["action=make", "methods={real: x}", "real=x"], "methods may not be called"),
        (["action=make", "methods={a: gone}", "real=gone"], "no clips in"),
        (["action=make", "methods={a/b: x}", "real=x"], "'a/b'"),
        (["action=make", "trials_per_cell=3"], "trials_per_cell must be even"),
    ],
)
def test_study_that_cannot_work_says_so_in_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_clips_that_are_not_alike_are_named(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word.replace(f"out={place}", f"out={tmp_path}") for word in make_words(place)]
    assert run(*words, "num_frames=9") == 2
    assert "has 8 frames, fewer than num_frames=9" in capsys.readouterr().err
    assert run(*make_words(place)) == 2
    assert "already holds a study" in capsys.readouterr().err


def test_report_without_votes_says_how_to_get_them(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("action=report", f"out={place}/study", f"database_url=sqlite:///{tmp_path}/votes.db") == 2
    assert "no votes" in capsys.readouterr().err
