"""Ask people which of two videos is more realistic."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from cluster.observability.tracking_config import TrackingConfig
from cluster.storage.files import exists, read_bytes, write_bytes
from cluster.storage.urls import absolute_url, join_url
from cluster.study import rating_server
from cluster.study.mechanical_turk import hits_csv, read_results
from cluster.study.study_store import STUDY, StoredStudy, list_clips, read_study, write_study
from cluster.study.vote_store import VoteStore
from jobs import cli
from vgan.errors import InputError
from vgan.options import check_choice, check_name, option, section
from vgan.study.ratings import required_votes
from vgan.study.trials import PAIR, REAL, SCRAMBLED, STATIC, StudyDesign, make_study
from vgan.viz.study import preference_text, render_hit, render_study_report

ABOUT = """Two videos side by side, "Which video is more realistic?", the paper's Table 1. Make a study of folders of
generated clips and real ones, each with a folder per category, and hand out a link to each rater:

  python -m jobs.study action=make real=out/real categories=[golf,beach] \
      "methods={two_stream: out/two, one_stream: out/one}"
  python -m jobs.study action=links raters=50 address=https://study.example.org
  python -m jobs.study action=serve port=8000
  python -m jobs.study action=report

The same on Mechanical Turk: upload the study's clips/ to media_url=, and give back the results:

  python -m jobs.study action=export media_url=https://bucket.example.org/clips
  python -m jobs.study action=import results=Batch_1_batch_results.csv
"""
ACTIONS = ("make", "links", "serve", "report", "export", "import")
RESERVED = (REAL, STATIC, SCRAMBLED)


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A study, and what is asked of it."""

    action: str = option("report", f"one of {', '.join(ACTIONS)}")
    out: str = option("out/study", "url of the study's folder")
    database_url: str = option("", "sqlite:///FILE or postgresql+psycopg://HOST/NAME; empty: votes.db in a local out=")
    name: str = option("study", "of the MLflow run")
    methods: dict[str, str] = option({}, "make: folder or dataset of each method's clips: {two_stream: out/two}")
    real: str = option("", "make: folder or dataset of real clips")
    categories: list[str] = option([], "make: folders inside each of them; empty: the clips are in the folder itself")
    trials_per_cell: int = option(20, "make: trials of each pair of methods in each category, even")
    trials_per_rater: int = option(50, "make: trials that one rater sees at most")
    gold_per_rater: int = option(4, "make: of them, real beside scrambled: who fails those does not look")
    static: bool = option(True, "make: each method beside a still frame of its own too")
    num_frames: int = option(32, "make: frames of each clip that are shown")
    fps: float = option(25.0, "make: frames a second")
    seed: int = option(0, "make: of clips, sides and order")
    raters: int = option(20, "links: how many")
    first_rater: int = option(0, "links: number of the first rater, for more links later")
    address: str = option("http://127.0.0.1:8000", "links: where raters reach the server")
    host: str = option("127.0.0.1", "serve: address to listen on; put a proxy with TLS before it")
    port: int = option(8000, "serve: 0 takes a free one")
    max_error_rate: float = option(
        0.5, "report: raters who are wrong more often than this are left out in two of the tables"
    )
    media_url: str = option("", "export: web address of the uploaded clips/")
    per_hit: int = option(10, "export: trials in one HIT")
    results: str = option("", "import: results file of a batch")
    tracking: TrackingConfig = section(TrackingConfig, "report: MLflow")

    def __post_init__(self) -> None:
        check_choice("action", self.action, ACTIONS)
        check_name(self.name)
        for name in (*self.methods, *self.categories):
            check_name(name)
        if set(self.methods) & set(RESERVED):
            raise ValueError(f"methods may not be called {', '.join(RESERVED)}; got {', '.join(self.methods)}")
        if not 0 < self.max_error_rate < 1 or not 0 <= self.port < 2**16:
            got = f"got {self.max_error_rate} and {self.port}"
            raise ValueError(f"max_error_rate must be in (0, 1) and port be in 0..65535, {got}")
        for key in ("num_frames", "raters", "per_hit"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        if self.first_rater < 0 or not 0.1 <= self.fps <= 240:
            raise ValueError(
                f"first_rater must be at least 0 and fps be in 0.1..240; got {self.first_rater} and {self.fps}"
            )
        self.plan()

    def plan(self) -> StudyDesign:
        """How many trials."""
        return StudyDesign(
            trials_per_cell=self.trials_per_cell,
            trials_per_rater=self.trials_per_rater,
            gold_per_rater=self.gold_per_rater,
            static=self.static,
            seed=self.seed,
        )


def main(config: StudyConfig) -> None:
    """Do what `config.action` says."""
    actions = {"make": make, "links": links, "serve": serve, "report": report, "export": export, "import": read}
    actions[config.action](config)


def make(config: StudyConfig) -> None:
    """Choose the trials, and encode them."""
    cli.require(config, "methods", "real")
    out = absolute_url(config.out)
    if exists(join_url(out, STUDY)):
        raise InputError(f"out={config.out!r} already holds a study: choose another folder")
    folders = {**config.methods, REAL: config.real}
    clips = {name: list_clips(absolute_url(url), config.categories) for name, url in folders.items()}
    study = make_study(clips, config.plan())
    print(f"{len(study.trials)} trials of {len(study.pairs)} pairs; encoding them", flush=True)
    write_study(study, out, num_frames=config.num_frames, fps=config.fps)
    cli.save(config, join_url(out, "settings.yaml"))
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
    cli.require(config, "media_url")
    out = absolute_url(config.out)
    table = hits_csv(read_study(out).study, config.media_url, config.per_hit)
    write_bytes(join_url(out, "hits.csv"), table.encode())
    write_bytes(join_url(out, "hit.html"), render_hit(config.per_hit).encode())
    print(f"{table.count(chr(10)) - 1} HITs of {config.per_hit} trials -> {out}/hits.csv, hit.html; upload {out}/clips")


def read(config: StudyConfig) -> None:
    """Take in the results of a batch; once more changes nothing."""
    cli.require(config, "results")
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


if __name__ == "__main__":
    raise SystemExit(cli.run(main, StudyConfig, ABOUT))
