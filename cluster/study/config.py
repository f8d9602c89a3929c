"""Settings of a preference study."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.observability.tracking_config import TrackingConfig
from vgan.options import check_choice, check_name, option, section
from vgan.study.trials import REAL, SCRAMBLED, STATIC, StudyDesign

ACTIONS = ("make", "links", "serve", "report", "export", "import")
RESERVED = (REAL, STATIC, SCRAMBLED)


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Settings of a study and of its actions; help texts start with the action that an option belongs to."""

    action: str = option("report", f"action to run: one of {', '.join(ACTIONS)}", "common")
    out: str = option("out/study", "URL of the study's folder", "common")
    database_url: str = option(
        "",
        "database of votes: sqlite:///FILE or postgresql+psycopg://HOST/NAME; empty: votes.db in a local out=",
        "common",
    )
    name: str = option("study", "name of the MLflow run")
    methods: dict[str, str] = option(
        {}, "make: folder or dataset of the clips of each method, e.g. {two_stream: out/two}", "common"
    )
    real: str = option("", "make: folder or dataset of real clips", "common")
    categories: list[str] = option(
        [], "make: subfolders of methods= and real=, one per category; empty: no categories", "common"
    )
    trials_per_cell: int = option(20, "make: trials per pair of methods and category, an even number")
    trials_per_rater: int = option(50, "make: maximum number of trials per rater")
    gold_per_rater: int = option(4, "make: attention checks among the trials of a rater: real against scrambled clips")
    static: bool = option(True, "make: also compare each method with a still frame of its clips")
    num_frames: int = option(32, "make: number of frames shown of each clip")
    fps: float = option(25.0, "make: frames per second")
    seed: int = option(0, "make: seed of the selection of clips, of sides and of the order")
    raters: int = option(20, "links: number of raters", "common")
    first_rater: int = option(0, "links: id of the first rater, to add links later")
    address: str = option("http://127.0.0.1:8000", "links: URL at which raters reach the server", "common")
    host: str = option("127.0.0.1", "serve: address to listen on; a public server needs a proxy with TLS in front")
    port: int = option(8000, "serve: port to listen on; 0: a free port", "common")
    max_error_rate: float = option(
        0.5, "report: maximum share of wrong answers of a rater; two of the tables exclude raters above it"
    )
    media_url: str = option("", "export: URL of the uploaded clips/", "common")
    per_hit: int = option(10, "export: trials per HIT")
    results: str = option("", "import: URL of a batch's results file (CSV)", "common")
    tracking: TrackingConfig = section(TrackingConfig, "report: MLflow tracking")

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
        """Return the numbers of trials and their seed; raise ValueError if they cannot be balanced."""
        return StudyDesign(
            trials_per_cell=self.trials_per_cell,
            trials_per_rater=self.trials_per_rater,
            gold_per_rater=self.gold_per_rater,
            static=self.static,
            seed=self.seed,
        )
