"""Actions on a preference study: make, links, serve, report, export, import."""

from __future__ import annotations

import asyncio

from cluster.runtime.provenance import save_settings
from cluster.storage.files import exists, read_bytes, write_bytes
from cluster.storage.urls import absolute_url, join_url
from cluster.study import rating_server
from cluster.study.config import StudyConfig
from cluster.study.mechanical_turk import hits_csv, read_results
from cluster.study.study_store import STUDY, StoredStudy, list_clips, read_study, write_study
from cluster.study.vote_store import VoteStore
from vgan.errors import InputError
from vgan.options import require_options
from vgan.study.ratings import required_votes
from vgan.study.trials import PAIR, REAL, make_study
from vgan.viz.study import preference_text, render_hit, render_study_report


def make(config: StudyConfig) -> None:
    """Draw the trials and encode their videos.

    Raises:
        InputError: a study exists in `config.out`, or the clips do not fit the settings.
    """
    require_options(config, "methods", "real")
    out = absolute_url(config.out)
    if exists(join_url(out, STUDY)):
        raise InputError(f"out={config.out!r} already holds a study: choose another folder")
    folders = {**config.methods, REAL: config.real}
    clips = {name: list_clips(absolute_url(url), config.categories) for name, url in folders.items()}
    study = make_study(clips, config.plan())
    print(f"{len(study.trials)} trials of {len(study.pairs)} pairs; encoding the videos", flush=True)
    write_study(study, out, num_frames=config.num_frames, fps=config.fps)
    save_settings(config, join_url(out, "settings.yaml"))
    cells = len(study.pairs) * len(study.categories)
    votes_per_rater = min(config.trials_per_rater - config.gold_per_rater, len(study.numbers(PAIR)))
    needed = required_votes(0.55)
    print(
        f"{votes_per_rater} counted votes per rater, {votes_per_rater / cells:.1f} per cell; detecting 55 % preference "
        f"takes {needed} votes per cell: {-(-needed * cells // votes_per_rater)} raters -> {out}"
    )


def links(config: StudyConfig) -> None:
    """Print one link per rater, with the rater's token."""
    _, store = _open(config)
    for rater in range(config.first_rater, config.first_rater + config.raters):
        print(f"{config.address.rstrip('/')}/#{rating_server.make_token(rater, store.secret)}")


def serve(config: StudyConfig) -> None:
    """Serve the study until the process is interrupted.

    Raises:
        InputError: the address or the port cannot be used.
        KeyboardInterrupt: always, at the end.
    """
    stored, store = _open(config)
    server = rating_server.RatingServer(stored, absolute_url(config.out), store)
    message = f"{len(store.all())} votes so far; serving on http://{config.host}"
    try:
        asyncio.run(
            rating_server.serve(server, config.host, config.port, lambda port: print(f"{message}:{port}", flush=True))
        )
    except OSError as error:
        raise InputError(f"cannot listen on host={config.host!r} port={config.port}: {error.strerror}") from error
    finally:
        store.close()
    raise KeyboardInterrupt  # the server ends only when interrupted: exit code and message as for every job


def report(config: StudyConfig) -> None:
    """Print the preference tables, write report.html, and log both to MLflow.

    Raises:
        InputError: the study has no votes.
    """
    from cluster.observability.mlflow_tracker import Tracker
    from cluster.study.report import (  # imports MLflow and torch, which the server does not need
        build_report,
        log_report,
        preference_tables,
        report_metrics,
    )

    stored, store = _open(config)
    votes = store.all()
    if not len(votes):
        raise InputError(f"no votes on the study in out={config.out!r} yet: see database_url= and action=serve")
    tables = preference_tables(votes, stored, config.max_error_rate)
    summary = build_report(votes, stored, tables, config.name)
    lines = [line for table in tables.values() for line in (table.title, preference_text(table.cells), "")]
    text = "\n".join([*lines, *(f"{label}: {value}" for label, value in summary.worth)])
    page, path = render_study_report(summary), join_url(absolute_url(config.out), "report.html")
    write_bytes(path, page.encode())
    print(f"{len(votes)} votes of {summary.raters} raters\n\n{text}\n\n{path}")
    tracker = Tracker(config.tracking.uri, config.tracking.experiment or "study")
    metrics = report_metrics(votes, stored, tables)
    log_report(tracker, config.name, stored, metrics, {"report.html": page, "report.txt": text})


def export(config: StudyConfig) -> None:
    """Write hit.html and hits.csv for a batch on Mechanical Turk."""
    require_options(config, "media_url")
    out = absolute_url(config.out)
    table = hits_csv(read_study(out).study, config.media_url, config.per_hit)
    write_bytes(join_url(out, "hits.csv"), table.encode())
    write_bytes(join_url(out, "hit.html"), render_hit(config.per_hit).encode())
    print(f"{table.count(chr(10)) - 1} HITs of {config.per_hit} trials -> {out}/hits.csv, hit.html; upload {out}/clips")


def import_results(config: StudyConfig) -> None:
    """Import the results of a batch; importing them again changes nothing.

    Raises:
        InputError: the results file does not exist or does not belong to this study.
    """
    require_options(config, "results")
    stored, store = _open(config)
    url = absolute_url(config.results)
    if not exists(url):
        raise InputError(f"no file at results={config.results!r}")
    batch = read_results(read_bytes(url).decode("utf-8-sig", "replace"), stored.study, store.secret)
    before = len(store.all())
    for start in range(0, len(batch.votes), 100):
        store.put(batch.votes[start : start + 100])
    added = len(store.all()) - before
    print(
        f"{added} votes added, {len(batch.votes) - added} already stored; excluded: {batch.capped} beyond "
        f"trials_per_rater, {batch.repeated} repeated, {batch.rejected} rejected assignments"
    )


def _open(config: StudyConfig) -> tuple[StoredStudy, VoteStore]:
    """Open the study and its store of votes."""
    out = absolute_url(config.out)
    stored = read_study(out)
    if not config.database_url and "://" in out:
        raise InputError(f"out={config.out!r} is not a local folder: give database_url=")
    return stored, VoteStore(config.database_url or f"sqlite:///{out}/votes.db", stored.digest)


ACTIONS = {
    "make": make,
    "links": links,
    "serve": serve,
    "report": report,
    "export": export,
    "import": import_results,
}


def run_action(config: StudyConfig) -> None:
    """Run the action that `config.action` names."""
    ACTIONS[config.action](config)
