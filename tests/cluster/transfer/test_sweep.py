"""A sweep's bookkeeping on the driver: registration, reading of the official lists, drawing of figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.storage.files import write_json
from cluster.transfer import sweep as sweep_module
from cluster.transfer.config import SweepConfig
from cluster.transfer.sweep import Throttle
from cluster.transfer.sweep_run import Initialization
from vgan.errors import InputError
from vgan.models.config import ModelConfig

RANDOM = {"random": Initialization(ModelConfig())}


def config(out: Path, **settings: object) -> SweepConfig:
    return SweepConfig(ucf101="unused", out=str(out), initializations=["random"], **settings)  # type: ignore[arg-type]


def test_restarted_sweep_has_the_same_key_and_other_test_settings_are_refused(tmp_path: Path) -> None:
    key = sweep_module._register(config(tmp_path), "d", RANDOM)
    assert sweep_module._register(config(tmp_path, fractions=[1.0], seeds=[5]), "d", RANDOM) == key
    with pytest.raises(InputError, match="validation was False, now True"):
        sweep_module._register(config(tmp_path, validation=True), "d", RANDOM)


def test_sweep_registered_with_the_keys_of_settings_version_1_continues(tmp_path: Path) -> None:
    settings = {"finetune": asdict(config(tmp_path).finetune), "data": "d", "test_clips": 1, "choose": False, "fold": 0}
    settings["finetune"]["logistic_penalty"] = settings["finetune"].pop("l2_penalty")
    write_json(f"{tmp_path}/sweep/run.json", {"key": "sweep-old", "settings": settings})
    assert sweep_module._register(config(tmp_path), "d", RANDOM) == "sweep-old"


# ---- official lists ----------------------------------------------------------------------------------------------


def test_sweep_reads_the_lists_of_each_split_once_and_passes_them_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: list[int] = []
    received: dict[str, list[object]] = {}

    def read(_: Path, number: int) -> SimpleNamespace:
        numbers.append(number)
        return SimpleNamespace(number=number)

    def prepare(splits: list[object], *_: object, **__: object) -> None:
        received["prepare"] = splits

    def load(split: object, *_: object, **__: object) -> SimpleNamespace:
        received.setdefault("load", []).append(split)
        return SimpleNamespace(summary=lambda: "")

    def check(splits: list[object], *_: object) -> str:
        received["leakage"] = splits
        return ""

    trained = {"vgan": Initialization(ModelConfig(), url="gan.t7")}
    replacements = {
        "read_split": read,
        "prepare_labeled_dataset": prepare,
        "load_labeled_split": load,
        "require_no_leakage": check,
        "ray_session": lambda _: nullcontext(False),
        "_starts": lambda _: trained,
        "_run_children": lambda *_: [],
        "Tracker": lambda *_: SimpleNamespace(experiment_id=lambda: "0"),
    }
    for name, replacement in replacements.items():
        monkeypatch.setattr(sweep_module, name, replacement)
    sweep_module.sweep(config(tmp_path, splits=[1, 3]))
    assert numbers == [1, 3]
    assert received["prepare"] == received["load"] == received["leakage"]
    assert len(received["load"]) == 2


# ---- figures -----------------------------------------------------------------------------------------------------


class Clock:
    """Clock that advances by `step_s` seconds at every reading."""

    def __init__(self, step_s: float) -> None:
        self.now_s, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


class RecordingRun:
    """MLflow run that records the paths of its artifacts."""

    id = "parent"

    def __init__(self) -> None:
        self.paths: list[str] = []

    def text(self, _: str, path: str) -> None:
        self.paths.append(path)

    def figure(self, _: object, path: str) -> None:
        self.paths.append(path)

    def dataset(self, **_: object) -> None:
        pass

    def metrics(self, *_: object, **__: object) -> None:
        pass

    @contextmanager
    def run_context(self) -> Iterator[None]:
        yield


SEEDS = 5


def run_children(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    seconds_per_run: float,
    is_new: bool = True,
    finished: bool = False,
    failing_seed: int | None = None,
) -> list[str]:
    """Run a sweep of `SEEDS` child runs with made-up outcomes, and return the paths of the parent's artifacts in order.

    Child runs are logged as "child".
    """
    parent = RecordingRun()
    outcome = {"accuracy": 0.5, "chance": 0.5, "protocol": "toy-split1_1clip", "labels": [0, 1], "predicted": [0, 0]}

    def outcomes(config: SweepConfig, *_: object) -> Iterator[tuple[Any, Any, bool]]:
        for child in sweep_module._children(config):
            yield child, ValueError("out of memory") if child.seed == failing_seed else outcome, is_new

    clock = Clock(seconds_per_run)
    monkeypatch.setattr(sweep_module, "_outcomes", outcomes)
    monkeypatch.setattr(sweep_module, "log_run", lambda *_: parent.paths.append("child"))
    monkeypatch.setattr(sweep_module, "Throttle", lambda interval_s: Throttle(interval_s, clock))
    tracker = SimpleNamespace(is_finished=lambda _: finished, start=lambda *_, **__: parent)
    settings = config(tmp_path, fractions=[1.0], seeds=list(range(SEEDS)))
    try:
        sweep_module._run_children(settings, tracker, RANDOM, SimpleNamespace(digest="d"), {}, "")  # type: ignore[arg-type]
    except RuntimeError as error:
        parent.paths.append(str(error).partition("\n")[0])
    return parent.paths


CHILD = ["child", "label_fractions.csv"]
FIGURES = ["figures/figure_4bc_toy-split1_1clip.png", "figures/figure_4a_toy-split1_1clip.png"]
PAGES = [path.replace(".png", ".html") for path in FIGURES]
END = ["label_fractions.csv", *FIGURES, *PAGES]


def test_throttle_allows_one_time_per_interval() -> None:
    throttle = Throttle(60, Clock(25))
    assert [throttle.ready() for _ in range(7)] == [False, False, True, False, False, True, False]


def test_short_sweep_logs_the_table_after_every_run_and_draws_figures_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_children(tmp_path, monkeypatch, seconds_per_run=1) == SEEDS * CHILD + END


def test_long_sweep_draws_figures_at_most_once_per_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = run_children(tmp_path, monkeypatch, seconds_per_run=25)
    assert paths == 3 * CHILD + FIGURES + 2 * CHILD + END


def test_failed_sweep_draws_the_results_of_the_other_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = run_children(tmp_path, monkeypatch, seconds_per_run=1, failing_seed=2)
    others = (SEEDS - 1) * CHILD
    assert paths == [*others, "label_fractions.csv", *FIGURES, f"1 of {SEEDS} child runs failed:"]


def test_finished_sweep_is_drawn_again_only_with_new_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unchanged = run_children(tmp_path, monkeypatch, seconds_per_run=1, is_new=False, finished=True)
    assert unchanged == SEEDS * ["child"]
    extended = run_children(tmp_path, monkeypatch, seconds_per_run=1, finished=True)
    assert extended == SEEDS * CHILD + END
