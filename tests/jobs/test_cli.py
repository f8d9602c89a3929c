"""The command line: precedence, strictness, one line for whoever typed it wrong."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.evaluation.config import EvaluateConfig, InspectConfig
from cluster.generation.config import GenerateConfig, PredictConfig
from cluster.planning.config import PlanConfig
from cluster.runtime.provenance import save_settings
from cluster.sources.config import AcquireConfig
from cluster.study.config import StudyConfig
from cluster.training.config import TrainConfig
from jobs import acquire, cli, evaluate, finetune, generate, inspect, plan, predict, prepare, study, train
from jobs.finetune import FinetuneJobConfig
from jobs.prepare import PrepareConfig
from vgan.errors import InputError
from vgan.options import option, section
from vgan.presets import PRESETS

JOBS = [
    (acquire, AcquireConfig),
    (prepare, PrepareConfig),
    (train, TrainConfig),
    (generate, GenerateConfig),
    (predict, PredictConfig),
    (evaluate, EvaluateConfig),
    (inspect, InspectConfig),
    (plan, PlanConfig),
    (study, StudyConfig),
    (finetune, FinetuneJobConfig),
]


@dataclass(frozen=True, kw_only=True)
class Oven:
    """A group of options."""

    heat_c: float = option(180.0, "temperature, degrees Celsius")
    fan: bool = option(False, "air moves")

    def __post_init__(self) -> None:
        if not 0 < self.heat_c <= 300:
            raise ValueError(f"oven.heat_c must be above 0 and at most 300, got {self.heat_c}")


@dataclass(frozen=True, kw_only=True)
class Cake:
    """Every kind of option that jobs have."""

    name: str = option("cake", "what it is called")
    layers: int = option(2, "how many")
    toppings: list[str] = option(["nuts"], "from the bottom up")
    rises: list[float] = option([0.5, 1.0], "heights, cm")
    oven: Oven = section(lambda: Oven(heat_c=200.0), "heat")


def fails(capsys: pytest.CaptureFixture[str], *words: str, kind: type = Cake) -> str:
    """Run a job that must not start; the one line it leaves on stderr."""

    def job(config: Any) -> None:
        pytest.fail(f"the job started with {config}")

    assert cli.run(job, kind, "about", words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_load_without_words_gives_the_defaults_of_the_group_too() -> None:
    assert cli.load_config(Cake, []) == Cake()
    assert cli.load_config(Cake, []).oven.heat_c == 200.0


def test_load_takes_words_over_the_file_over_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "cake.yaml").write_text("layers: 3\noven:\n  heat_c: 150\n  fan: true\ntoppings: [figs, nuts]\n")
    found = cli.load_config(Cake, [f"config={tmp_path}/cake.yaml", "oven.heat_c=160", "rises=[2, 3.5]"])
    expected = Cake(layers=3, toppings=["figs", "nuts"], rises=[2.0, 3.5], oven=Oven(heat_c=160.0, fan=True))
    assert found == expected
    assert isinstance(found.oven, Oven)


def settings_of(preset: str) -> dict[str, Any]:
    """What a preset says, as the settings of a training job say it."""
    found = cli.load_config(TrainConfig, [f"preset={preset}"])
    return {key: getattr(getattr(found, key.split(".")[0]), key.split(".")[1]) for key in PRESETS[preset]}


@pytest.mark.parametrize("preset", PRESETS)
def test_load_takes_a_preset_over_the_defaults_and_leaves_the_rest(preset: str) -> None:
    assert settings_of(preset) == PRESETS[preset]
    touched = {key.split(".")[1] for key in PRESETS[preset]}
    found, plain = cli.load_config(TrainConfig, [f"preset={preset}"]), TrainConfig()
    assert found.preset == preset
    for group in ("model", "objective"):
        values, defaults = (dataclasses.asdict(getattr(c, group)) for c in (found, plain))
        assert {k for k in values if values[k] != defaults[k]} <= touched
    assert dataclasses.replace(found, preset="paper", model=plain.model, objective=plain.objective) == plain


@pytest.mark.parametrize(
    "words",
    [
        ["preset=stable", "objective.loss=softmax"],
        ["objective.loss=softmax", "preset=stable"],  # the order of words does not matter
        ["config=CONFIG"],
    ],
)
def test_load_takes_what_was_asked_for_by_name_over_the_preset(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "run.yaml").write_text("preset: stable\nobjective:\n  loss: softmax\n")
    found = cli.load_config(TrainConfig, [word.replace("CONFIG", f"{tmp_path}/run.yaml") for word in words])
    assert found.objective.loss == "softmax"
    assert found.objective.horizontal_flip  # the rest of the preset holds
    assert found.model.discriminator_norm == "spectral"


def test_load_takes_a_words_preset_over_the_whole_file(tmp_path: Path) -> None:
    save_settings(TrainConfig(), str(tmp_path / "settings.yaml"))  # which names every key
    assert cli.load_config(TrainConfig, [f"config={tmp_path}/settings.yaml", "preset=stable"]).objective.loss == "hinge"


def test_load_takes_presets_of_the_job_at_hand() -> None:
    found = cli.load_config(FinetuneJobConfig, ["preset=reference", "finetune.dropout=0.2"])
    assert (found.finetune.iterations, found.finetune.batch_size, found.finetune.dropout) == (1000, 256, 0.2)
    assert found.model == FinetuneJobConfig().model
    assert cli.load_config(FinetuneJobConfig, ["preset=modern"]) == FinetuneJobConfig()
    with pytest.raises(InputError, match="preset must be one of reference, modern; got 'stable'"):
        cli.load_config(FinetuneJobConfig, ["preset=stable"])


def test_load_takes_a_mapping_of_names_from_a_file_and_from_what_save_kept(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(
        "extra_checkpoints:\n  longer.1: runs/longer\n  wider: runs/wider\nseeds: [3]\n"
    )
    found = cli.load_config(FinetuneJobConfig, [f"config={tmp_path}/sweep.yaml"])
    assert found.extra_checkpoints == {"longer.1": "runs/longer", "wider": "runs/wider"}
    save_settings(found, str(tmp_path / "settings.yaml"))
    assert cli.load_config(FinetuneJobConfig, [f"config={tmp_path}/settings.yaml"]) == found


def test_load_of_a_preset_that_is_no_name_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("preset: [stable]\n")
    with pytest.raises(InputError, match="preset"):
        cli.load_config(TrainConfig, [f"config={tmp_path}/run.yaml"])


def test_load_takes_a_preset_from_a_file_and_another_from_a_word(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("preset: stable\n")
    assert cli.load_config(TrainConfig, [f"config={tmp_path}/run.yaml"]).objective.loss == "hinge"
    found = cli.load_config(TrainConfig, [f"config={tmp_path}/run.yaml", "preset=reference"])
    assert (found.preset, found.model.future_encoder, found.objective.loss) == ("reference", "reference", "softmax")


def test_run_with_an_unknown_preset_names_it_and_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(capsys, "preset=stabel", kind=TrainConfig)
    assert "preset must be one of paper, reference, stable; got 'stabel'" in error


def test_presets_kept_in_settings_load_again(tmp_path: Path) -> None:
    config = cli.load_config(TrainConfig, ["preset=stable", "objective.horizontal_flip=false"])
    save_settings(config, str(tmp_path / "settings.yaml"))
    assert cli.load_config(TrainConfig, [f"config={tmp_path}/settings.yaml"]) == config


def test_load_the_last_of_two_words_wins() -> None:
    assert cli.load_config(Cake, ["layers=3", "layers=5"]).layers == 5


@pytest.mark.parametrize(
    "text", ["7", "true", "null", "1e-3", "[x]", "a: b", "a=b", " ", "-", "\u00fc", "#x", "s3://b/c?d=e"]
)
def test_load_keeps_text_as_it_was_typed(text: str) -> None:
    assert cli.load_config(Cake, [f"name={text}"]).name == text


@pytest.mark.parametrize(
    ("word", "key", "value"), [("rises=[1e-3]", "rises", [1e-3]), ("toppings=figs", "toppings", ["figs"])]
)
def test_load_reads_numbers_with_exponents_and_single_items(word: str, key: str, value: Any) -> None:
    assert getattr(cli.load_config(Cake, [word]), key) == value


def test_load_gives_frozen_settings() -> None:
    config = cli.load_config(Cake, ["layers=3"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.layers = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("layer=3", "'layer'; did you mean 'layers'?"),
        ("oven.heat=3", "'oven.heat'; did you mean 'oven.heat_c'?"),
        ("xyzzy=3", "unknown key 'xyzzy' (--help"),
        ("oven=3", "unknown key 'oven'"),
        ("layers=many", "layers='many'"),
        ("layers=1.5", "layers=1.5"),
        ("layers=", "layers=None"),
        ("layers=[1]", "layers=[1]"),
        ("oven.fan=maybe", "oven.fan='maybe'"),
        ("rises=[tall]", "rises=['tall']"),
        ("oven.heat_c=301", "oven.heat_c must be above 0 and at most 300, got 301"),
        ("name=${nowhere}", "nowhere"),
        ("layers", "'layers' is not key=value"),
        ("--layers=3", "'--layers'; did you mean 'layers'?"),
        ("config=nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_run_with_a_wrong_word_names_it_in_one_line_and_exits_2(
    capsys: pytest.CaptureFixture[str], word: str, named: str
) -> None:
    assert named in fails(capsys, word)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("layers: [1\nname: x", "is not YAML"),
        ("- 1\n- 2\n", "must hold `key: value` lines"),
        ("", "must hold `key: value` lines"),
        ("oven:\n  heet_c: 3\n", "'oven.heet_c'; did you mean 'oven.heat_c'?"),
        ("oven: 3\n", "unknown key 'oven'"),
        ("layers: two\n", "layers='two'"),
        ("name: null\n", "name=None"),
    ],
)
def test_run_with_a_wrong_file_names_it_in_one_line_and_exits_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, named: str
) -> None:
    (tmp_path / "cake.yaml").write_text(text)
    assert named in fails(capsys, f"config={tmp_path}/cake.yaml")


def test_run_prints_settings_that_can_be_given_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    seen: list[Cake] = []
    assert cli.run(seen.append, Cake, "about", ["layers=4", "oven.fan=true"]) == 0
    text = capsys.readouterr().out.removeprefix("settings:\n")
    (tmp_path / "again.yaml").write_text(text)
    assert (
        cli.load_config(Cake, [f"config={tmp_path}/again.yaml"])
        == seen[0]
        == Cake(layers=4, oven=Oven(heat_c=200.0, fan=True))
    )


@pytest.mark.parametrize(
    ("fault", "code", "lines"),
    [(InputError("no\nsuch\nfile"), 2, 1), (KeyboardInterrupt(), 130, 1), (RuntimeError("a bug"), 1, 4)],
)
def test_run_exit_code_and_stderr_say_who_is_to_blame(
    capsys: pytest.CaptureFixture[str], fault: BaseException, code: int, lines: int
) -> None:
    def job(_: Cake) -> None:
        raise fault

    assert cli.run(job, Cake, "about", []) == code
    error = capsys.readouterr().err
    assert ("Traceback" in error) == (code == 1)
    assert (error.count("\n") == 1) == (lines == 1)


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_shows_sections_as_one_line_each(capsys: pytest.CaptureFixture[str], word: str) -> None:
    assert cli.run(lambda config: pytest.fail(str(config)), Cake, "Bake a cake.", ["layers=x", word]) == 0
    text = capsys.readouterr().out
    assert "  oven.*" in text
    assert "oven.heat_c=" not in text


def test_help_of_a_section_shows_it_alone_and_an_unknown_one_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(lambda config: pytest.fail(str(config)), Cake, "Bake a cake.", ["--help=oven"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("=")[0].strip() for line in lines if "=" in line] == ["oven.heat_c", "oven.fan"]
    assert cli.run(lambda config: pytest.fail(str(config)), Cake, "Bake a cake.", ["--help=bowl"]) == 2


def test_help_and_a_misspelt_key_import_nothing_heavy() -> None:
    heavy = "('torch', 'ray', 'mlflow', 'pyarrow', 'omegaconf', 'cv2', 'matplotlib')"
    for name in ("acquire", "plan", "prepare", "dataset", "train", "generate", "predict", "finetune", "evaluate"):
        code = (
            f"import sys; from jobs import {name} as job; from jobs import cli\n"
            f"config = next(c for n, c in vars(job).items() if n.endswith('Config') and c.__module__ != 'x'\n"
            f"              and '{name}' in n.lower().replace('sweep', 'finetune'))\n"
            f"cli.run(print, config, job.ABOUT, ['--help'])\n"
            f"assert cli.run(print, config, job.ABOUT, ['stepz=3']) == 2\n"
            f"print('HEAVY', [m for m in {heavy} if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stdout.splitlines()[-1] == "HEAVY []", (name, done.stdout[-300:], done.stderr[-300:])


def test_key_of_an_earlier_version_is_answered_with_its_present_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(lambda config: pytest.fail(str(config)), TrainConfig, "about", ["pieces=2"]) == 2
    assert "it is called 'gradient_accumulation_steps' now" in capsys.readouterr().err


def test_run_help_lists_every_option_with_its_real_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(lambda config: pytest.fail(str(config)), Cake, "Bake a cake.", ["layers=x", "--help=all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Bake a cake."
    shown = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert set(shown) == {
        "name=cake",
        "layers=2",
        'toppings=["nuts"]',
        "rises=[0.5,",
        "oven.heat_c=200.0",
        "oven.fan=false",
    }
    assert shown["oven.heat_c=200.0"].endswith("temperature, degrees Celsius [number]")


@pytest.mark.parametrize(("job", "kind"), JOBS, ids=[job.__name__ for job, _ in JOBS])
def test_every_job_explains_itself_and_each_of_its_options(
    capsys: pytest.CaptureFixture[str], job: Any, kind: type
) -> None:
    assert cli.run(job.main, kind, job.ABOUT, ["--help=all"]) == 0
    text = capsys.readouterr().out
    assert f"python -m {job.__name__} " in text
    defaults = cli.load_config(kind, [])
    for key, _, default, meaning, _ in cli.list_options(kind):
        value: Any = defaults
        for part in key.split("."):
            value = getattr(value, part)
        assert value == default, key
        assert f"  {key}=" in text
        assert meaning


@pytest.mark.parametrize(("job", "kind"), JOBS, ids=[job.__name__ for job, _ in JOBS])
def test_every_job_says_what_it_needs(
    capsys: pytest.CaptureFixture[str], job: Any, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(job.main, kind, job.ABOUT, []) == 2
    error = capsys.readouterr().err
    assert any(words in error for words in ("= is required", "give exactly one of", "make it with"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", sorted((Path(cli.__file__).parent / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_named_configs_are_settings_of_the_job_that_their_first_line_runs(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    (kind,) = (kind for job, kind in JOBS if f"-m {job.__name__} " in first)
    values = yaml.safe_load(path.read_text())
    config = cli.load_config(kind, [f"config={path}"])
    for key, value in values.items():
        if not isinstance(value, dict):
            assert getattr(config, key) == value or str(getattr(config, key)) == str(value)  # `workers` takes 2 and 1-8


def test_save_keeps_settings_that_load_again(tmp_path: Path) -> None:
    config = cli.load_config(TrainConfig, ["steps=7", "model.base_width=4", "name=x"])
    save_settings(config, str(tmp_path / "below" / "settings.yaml"))
    assert cli.load_config(TrainConfig, [f"config={tmp_path}/below/settings.yaml"]) == config
