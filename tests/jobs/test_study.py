"""`jobs.study`, from folders of clips to a report in MLflow."""

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


def run(*arguments: str) -> int:
    return cli.run(study.main, StudyConfig, study.ABOUT, arguments)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    draw_folders(root)
    assert run(*make_words(root)) == 0
    return root


def pictures(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(int)


def test_make_shows_the_clips_of_each_trial_on_the_sides_of_study_json(root: Path) -> None:
    for number, trial in enumerate(read_study(f"{root}/study").study.trials[:12]):
        both = pictures(root / "study" / "clips" / f"{number:05d}.mp4")
        assert both.shape == (8, 128, 256, 3)
        for clip, side in ((trial.first, trial.left), (trial.second, 1 - trial.left)):
            side_frames = both[:, ::2, side * 128 : side * 128 + 128 : 2]
            if clip.method == "static":
                assert np.abs(np.diff(side_frames, axis=0)).mean() < 2
            elif clip.method != "scrambled":
                assert np.abs(side_frames - pictures(Path(clip.source))).mean() < 5


def test_make_writes_files_of_equal_size_and_is_deterministic(root: Path, tmp_path: Path) -> None:
    files = sorted((root / "study" / "clips").iterdir())
    assert len({file.stat().st_size for file in files}) == 1
    arguments = [argument.replace(f"out={root}", f"out={tmp_path}") for argument in make_words(root)]
    assert run(*arguments) == 0
    again = [tmp_path / "study" / "clips" / file.name for file in files]
    digests = [[hashlib.sha256(f.read_bytes()).hexdigest() for f in some] for some in (files, again)]
    assert digests[0] == digests[1]
    assert read_study(f"{root}/study").digest == read_study(f"{tmp_path}/study").digest


def test_report_prints_the_table_writes_the_page_and_logs_to_mlflow(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = read_study(f"{root}/study")
    db, tracking = f"database_url=sqlite:///{tmp_path}/votes.db", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    store = VoteStore(db.removeprefix("database_url="), stored.digest)
    for rater in range(12):
        first = [stored.study.trials[n].left == 0 for n in rater_session(stored.study, rater)]
        votes = zip(rater_session(stored.study, rater), first, strict=True)
        store.put([Vote(rater=str(rater), trial=n, left=left) for n, left in votes])
    arguments = ["action=report", f"out={root}/study", db, tracking]
    assert run(*arguments) == run(*arguments) == 0
    message = capsys.readouterr().out
    assert "two_stream over real" in message
    assert "[paper 18]" in message  # the paper's mean beside the study's
    page = (root / "study" / "report.html").read_text()
    assert "Table 1" in page
    assert "kappa" in page
    assert not any(
        argument in page for argument in ("src=", "href=", "url(", "<script")
    )  # the page loads no other file
    client = mlflow.MlflowClient(tracking.partition("=")[2])
    (logged,) = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics["preference/all/two_stream-over-real/mean"] == 1.0
    assert logged.data.metrics["votes"] == 12 * 8
    assert logged.data.tags["study_hash"] == stored.digest
    assert {a.path for a in client.list_artifacts(logged.info.run_id)} == {"report.html", "report.txt"}


def test_export_and_import_of_a_batch(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, db = f"out={root}/study", f"database_url=sqlite:///{tmp_path}/votes.db"
    assert run("action=export", out, "media_url=https://x/clips", "per_hit=4") == 0
    rows = list(csv.DictReader((root / "study" / "hits.csv").read_text().splitlines()))
    assert "${clip_4}" in (root / "study" / "hit.html").read_text()
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
    ("arguments", "message"),
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
def test_invalid_settings_are_reported_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_clips_with_too_few_frames_are_named(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [argument.replace(f"out={root}", f"out={tmp_path}") for argument in make_words(root)]
    assert run(*arguments, "num_frames=9") == 2
    assert "has 8 frames, fewer than num_frames=9" in capsys.readouterr().err
    assert run(*make_words(root)) == 2
    assert "already holds a study" in capsys.readouterr().err


def test_report_without_votes_is_bad_input(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("action=report", f"out={root}/study", f"database_url=sqlite:///{tmp_path}/votes.db") == 2
    assert "no votes" in capsys.readouterr().err
