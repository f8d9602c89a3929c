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
    """A study, and what is asked of it."""

    action: str = option("report", f"one of {', '.join(ACTIONS)}", "common")
    out: str = option("out/study", "url of the study's folder", "common")
    database_url: str = option(
        "", "sqlite:///FILE or postgresql+psycopg://HOST/NAME; empty: votes.db in a local out=", "common"
    )
    name: str = option("study", "of the MLflow run")
    methods: dict[str, str] = option(
        {}, "make: folder or dataset of each method's clips: {two_stream: out/two}", "common"
    )
    real: str = option("", "make: folder or dataset of real clips", "common")
    categories: list[str] = option(
        [], "make: folders inside each of them; empty: the clips are in the folder itself", "common"
    )
    trials_per_cell: int = option(20, "make: trials of each pair of methods in each category, even")
    trials_per_rater: int = option(50, "make: trials that one rater sees at most")
    gold_per_rater: int = option(4, "make: of them, real beside scrambled: who fails those does not look")
    static: bool = option(True, "make: each method beside a still frame of its own too")
    num_frames: int = option(32, "make: frames of each clip that are shown")
    fps: float = option(25.0, "make: frames a second")
    seed: int = option(0, "make: of clips, sides and order")
    raters: int = option(20, "links: how many", "common")
    first_rater: int = option(0, "links: number of the first rater, for more links later")
    address: str = option("http://127.0.0.1:8000", "links: where raters reach the server", "common")
    host: str = option("127.0.0.1", "serve: address to listen on; put a proxy with TLS before it")
    port: int = option(8000, "serve: 0 takes a free one", "common")
    max_error_rate: float = option(
        0.5, "report: raters who are wrong more often than this are left out in two of the tables"
    )
    media_url: str = option("", "export: web address of the uploaded clips/", "common")
    per_hit: int = option(10, "export: trials in one HIT")
    results: str = option("", "import: results file of a batch", "common")
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
