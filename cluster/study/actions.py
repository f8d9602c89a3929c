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
    """Choose the trials, and encode them."""
    require_options(config, "methods", "real")
    out = absolute_url(config.out)
    if exists(join_url(out, STUDY)):
        raise InputError(f"out={config.out!r} already holds a study: choose another folder")
    folders = {**config.methods, REAL: config.real}
    clips = {name: list_clips(absolute_url(url), config.categories) for name, url in folders.items()}
    study = make_study(clips, config.plan())
    print(f"{len(study.trials)} trials of {len(study.pairs)} pairs; encoding them", flush=True)
    write_study(study, out, num_frames=config.num_frames, fps=config.fps)
    save_settings(config, join_url(out, "settings.yaml"))
    cells = len(study.pairs) * len(study.categories)
    counted = min(config.trials_per_rater - config.gold_per_rater, len(study.numbers(PAIR)))
    needed = required_votes(0.55)
    print(
        f"a rater gives {counted} votes that count, {counted / cells:.1f} a cell; to see 55 % takes {needed} a cell: "
        f"{-(-needed * cells // counted)} raters -> {out}"
    )


def links(config: StudyConfig) -> None:
    """Print a link for each rater."""
    _, store = _open(config)
    for rater in range(config.first_rater, config.first_rater + config.raters):
        print(f"{config.address.rstrip('/')}/#{rating_server.make_token(rater, store.secret)}")


def serve(config: StudyConfig) -> None:
    """Serve the study until it is stopped."""
    stored, store = _open(config)
    server = rating_server.RatingServer(stored, absolute_url(config.out), store)
    say = f"{len(store.all())} votes so far; serving on http://{config.host}"
    try:
        asyncio.run(
            rating_server.serve(server, config.host, config.port, lambda port: print(f"{say}:{port}", flush=True))
        )
    except OSError as fault:
        raise InputError(f"cannot listen on host={config.host!r} port={config.port}: {fault.strerror}") from fault
    finally:
        store.close()
    raise KeyboardInterrupt  # it ends by being stopped, and says so as every job does


def report(config: StudyConfig) -> None:
    """Print the table, write report.html, and put both into MLflow."""
    from cluster.observability.mlflow_tracker import Tracker
    from cluster.study.report import (  # with MLflow and torch, which a server has no use for
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
    found = build_report(votes, stored, tables, config.name)
    lines = [line for table in tables.values() for line in (table.title, preference_text(table.cells), "")]
    text = "\n".join([*lines, *(f"{what}: {value}" for what, value in found.worth)])
    page, path = render_study_report(found), join_url(absolute_url(config.out), "report.html")
    write_bytes(path, page.encode())
    print(f"{len(votes)} votes of {found.raters} raters\n\n{text}\n\n{path}")
    tracker = Tracker(config.tracking.uri, config.tracking.experiment or "study")
    metrics = report_metrics(votes, stored, tables)
    log_report(tracker, config.name, stored, metrics, {"report.html": page, "report.txt": text})


def export(config: StudyConfig) -> None:
    """Write hit.html and hits.csv for Mechanical Turk."""
    require_options(config, "media_url")
    out = absolute_url(config.out)
    table = hits_csv(read_study(out).study, config.media_url, config.per_hit)
    write_bytes(join_url(out, "hits.csv"), table.encode())
    write_bytes(join_url(out, "hit.html"), render_hit(config.per_hit).encode())
    print(f"{table.count(chr(10)) - 1} HITs of {config.per_hit} trials -> {out}/hits.csv, hit.html; upload {out}/clips")


def import_results(config: StudyConfig) -> None:
    """Take in the results of a batch; once more changes nothing."""
    require_options(config, "results")
    stored, store = _open(config)
    url = absolute_url(config.results)
    if not exists(url):
        raise InputError(f"no file at results={config.results!r}")
    found = read_results(read_bytes(url).decode("utf-8-sig", "replace"), stored.study, store.secret)
    before = len(store.all())
    for start in range(0, len(found.votes), 100):
        store.put(found.votes[start : start + 100])
    added = len(store.all()) - before
    print(
        f"{added} votes added, {len(found.votes) - added} were there; left out: {found.capped} beyond "
        f"trials_per_rater, {found.repeated} repeated, {found.rejected} rejected assignments"
    )


def _open(config: StudyConfig) -> tuple[StoredStudy, VoteStore]:
    """The study and its votes."""
    out = absolute_url(config.out)
    stored = read_study(out)
    if not config.database_url and "://" in out:
        raise InputError(f"out={config.out!r} is no local folder: give database_url=")
    return stored, VoteStore(config.database_url or f"sqlite:///{out}/votes.database_url", stored.digest)


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
