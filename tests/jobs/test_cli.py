"""Command line: precedence of settings, unknown keys and wrong values, help."""

from __future__ import annotations

import dataclasses
import os
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
    """Section of options."""

    heat_c: float = option(180.0, "temperature, degrees Celsius")
    fan: bool = option(False, "circulating air")

    def __post_init__(self) -> None:
        if not 0 < self.heat_c <= 300:
            raise ValueError(f"oven.heat_c must be above 0 and at most 300, got {self.heat_c}")


@dataclass(frozen=True, kw_only=True)
class Cake:
    """Options of every type that jobs have."""

    name: str = option("cake", "name of the cake")
    layers: int = option(2, "number of layers")
    toppings: list[str] = option(["nuts"], "toppings from the bottom up")
    rises: list[float] = option([0.5, 1.0], "heights, cm")
    oven: Oven = section(lambda: Oven(heat_c=200.0), "heat")


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, config_class: type = Cake) -> str:
    """Run a job whose settings are invalid and return its one line on stderr."""

    def job(config: Any) -> None:
        pytest.fail(f"the job started with {config}")

    assert cli.run(job, config_class, "about", arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_load_without_arguments_returns_the_defaults_of_sections_too() -> None:
    assert cli.load_config(Cake, []) == Cake()
    assert cli.load_config(Cake, []).oven.heat_c == 200.0


def test_arguments_override_the_file_and_the_file_overrides_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "cake.yaml").write_text("layers: 3\noven:\n  heat_c: 150\n  fan: true\ntoppings: [figs, nuts]\n")
    config = cli.load_config(Cake, [f"config={tmp_path}/cake.yaml", "oven.heat_c=160", "rises=[2, 3.5]"])
    expected = Cake(layers=3, toppings=["figs", "nuts"], rises=[2.0, 3.5], oven=Oven(heat_c=160.0, fan=True))
    assert config == expected
    assert isinstance(config.oven, Oven)


def settings_of(preset: str) -> dict[str, Any]:
    """Return the settings of a training job that the preset names, as loaded with it."""
    config = cli.load_config(TrainConfig, [f"preset={preset}"])
    return {key: getattr(getattr(config, key.split(".")[0]), key.split(".")[1]) for key in PRESETS[preset]}


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_overrides_only_the_defaults_it_names(preset: str) -> None:
    assert settings_of(preset) == PRESETS[preset]
    touched = {key.split(".")[1] for key in PRESETS[preset]}
    config, plain = cli.load_config(TrainConfig, [f"preset={preset}"]), TrainConfig()
    assert config.preset == preset
    for group in ("model", "objective"):
        values, defaults = (dataclasses.asdict(getattr(c, group)) for c in (config, plain))
        assert {k for k in values if values[k] != defaults[k]} <= touched
    assert dataclasses.replace(config, preset="paper", model=plain.model, objective=plain.objective) == plain


@pytest.mark.parametrize(
    "arguments",
    [
        ["preset=stable", "objective.loss=softmax"],
        ["objective.loss=softmax", "preset=stable"],  # the order of arguments does not matter
        ["config=CONFIG"],
    ],
)
def test_explicit_settings_override_the_preset(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "run.yaml").write_text("preset: stable\nobjective:\n  loss: softmax\n")
    config = cli.load_config(
        TrainConfig, [argument.replace("CONFIG", f"{tmp_path}/run.yaml") for argument in arguments]
    )
    assert config.objective.loss == "softmax"
    assert config.objective.horizontal_flip  # other settings of the preset apply
    assert config.model.discriminator_norm == "spectral"


def test_preset_argument_overrides_the_file(tmp_path: Path) -> None:
    save_settings(TrainConfig(), str(tmp_path / "settings.yaml"))  # with every key
    assert cli.load_config(TrainConfig, [f"config={tmp_path}/settings.yaml", "preset=stable"]).objective.loss == "hinge"


def test_presets_depend_on_the_job() -> None:
    config = cli.load_config(FinetuneJobConfig, ["preset=reference", "finetune.dropout=0.2"])
    assert (config.finetune.iterations, config.finetune.batch_size, config.finetune.dropout) == (1000, 256, 0.2)
    assert config.model == FinetuneJobConfig().model
    assert cli.load_config(FinetuneJobConfig, ["preset=modern"]) == FinetuneJobConfig()
    with pytest.raises(InputError, match="preset must be one of reference, modern; got 'stable'"):
        cli.load_config(FinetuneJobConfig, ["preset=stable"])


def test_load_reads_a_mapping_from_a_file_and_from_saved_settings(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(
        "extra_checkpoints:\n  longer.1: runs/longer\n  wider: runs/wider\nseeds: [3]\n"
    )
    config = cli.load_config(FinetuneJobConfig, [f"config={tmp_path}/sweep.yaml"])
    assert config.extra_checkpoints == {"longer.1": "runs/longer", "wider": "runs/wider"}
    save_settings(config, str(tmp_path / "settings.yaml"))
    assert cli.load_config(FinetuneJobConfig, [f"config={tmp_path}/settings.yaml"]) == config


def test_preset_that_is_not_text_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("preset: [stable]\n")
    with pytest.raises(InputError, match="preset"):
        cli.load_config(TrainConfig, [f"config={tmp_path}/run.yaml"])


def test_preset_from_a_file_and_from_an_argument(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("preset: stable\n")
    assert cli.load_config(TrainConfig, [f"config={tmp_path}/run.yaml"]).objective.loss == "hinge"
    config = cli.load_config(TrainConfig, [f"config={tmp_path}/run.yaml", "preset=reference"])
    assert (config.preset, config.model.future_encoder, config.objective.loss) == ("reference", "reference", "softmax")


def test_unknown_preset_names_it_and_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(capsys, "preset=stabel", config_class=TrainConfig)
    assert "preset must be one of paper, reference, stable; got 'stabel'" in error


def test_saved_settings_with_a_preset_load_again(tmp_path: Path) -> None:
    config = cli.load_config(TrainConfig, ["preset=stable", "objective.horizontal_flip=false"])
    save_settings(config, str(tmp_path / "settings.yaml"))
    assert cli.load_config(TrainConfig, [f"config={tmp_path}/settings.yaml"]) == config


def test_last_of_two_equal_keys_wins() -> None:
    assert cli.load_config(Cake, ["layers=3", "layers=5"]).layers == 5


@pytest.mark.parametrize(
    "text", ["7", "true", "null", "1e-3", "[x]", "a: b", "a=b", " ", "-", "\u00fc", "#x", "s3://b/c?d=e"]
)
def test_load_keeps_text_unparsed(text: str) -> None:
    assert cli.load_config(Cake, [f"name={text}"]).name == text


@pytest.mark.parametrize(
    ("argument", "key", "value"), [("rises=[1e-3]", "rises", [1e-3]), ("toppings=figs", "toppings", ["figs"])]
)
def test_load_reads_numbers_with_exponents_and_single_items(argument: str, key: str, value: Any) -> None:
    assert getattr(cli.load_config(Cake, [argument]), key) == value


def test_loaded_settings_are_frozen() -> None:
    config = cli.load_config(Cake, ["layers=3"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.layers = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("argument", "message"),
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
def test_run_with_a_wrong_argument_names_it_in_one_line_and_exits_2(
    capsys: pytest.CaptureFixture[str], argument: str, message: str
) -> None:
    assert message in fails(capsys, argument)


@pytest.mark.parametrize(
    ("text", "message"),
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
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "cake.yaml").write_text(text)
    assert message in fails(capsys, f"config={tmp_path}/cake.yaml")


def test_run_prints_settings_that_load_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    received: list[Cake] = []
    assert cli.run(received.append, Cake, "about", ["layers=4", "oven.fan=true"]) == 0
    text = capsys.readouterr().out.removeprefix("settings:\n")
    (tmp_path / "again.yaml").write_text(text)
    assert (
        cli.load_config(Cake, [f"config={tmp_path}/again.yaml"])
        == received[0]
        == Cake(layers=4, oven=Oven(heat_c=200.0, fan=True))
    )


@pytest.mark.parametrize(
    ("exception", "code", "lines"),
    [(InputError("no\nsuch\nfile"), 2, 1), (KeyboardInterrupt(), 130, 1), (RuntimeError("a bug"), 1, 4)],
)
def test_exit_code_and_stderr_distinguish_bad_input_interrupts_and_bugs(
    capsys: pytest.CaptureFixture[str], exception: BaseException, code: int, lines: int
) -> None:
    def job(_: Cake) -> None:
        raise exception

    assert cli.run(job, Cake, "about", []) == code
    error = capsys.readouterr().err
    assert ("Traceback" in error) == (code == 1)
    assert (error.count("\n") == 1) == (lines == 1)


@pytest.mark.parametrize("argument", ["--help", "-h", "help"])
def test_help_shows_sections_as_one_line_each(capsys: pytest.CaptureFixture[str], argument: str) -> None:
    assert cli.run(lambda config: pytest.fail(str(config)), Cake, "Bake a cake.", ["layers=x", argument]) == 0
    text = capsys.readouterr().out
    assert "  oven.*" in text
    assert "oven.heat_c=" not in text


def test_help_of_a_section_shows_only_its_options_and_rejects_unknown_sections(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(lambda config: pytest.fail(str(config)), Cake, "Bake a cake.", ["--help=oven"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("=")[0].strip() for line in lines if "=" in line] == ["oven.heat_c", "oven.fan"]
    assert cli.run(lambda config: pytest.fail(str(config)), Cake, "Bake a cake.", ["--help=bowl"]) == 2


def test_help_and_a_misspelled_key_import_no_heavy_modules() -> None:
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


def test_renamed_key_reports_its_present_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(lambda config: pytest.fail(str(config)), TrainConfig, "about", ["pieces=2"]) == 2
    assert "it is called 'gradient_accumulation_steps' now" in capsys.readouterr().err


def test_help_lists_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
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


@pytest.mark.parametrize(("job", "config_class"), JOBS, ids=[job.__name__ for job, _ in JOBS])
def test_help_of_every_job_documents_every_option(
    capsys: pytest.CaptureFixture[str], job: Any, config_class: type
) -> None:
    assert cli.run(job.main, config_class, job.ABOUT, ["--help=all"]) == 0
    text = capsys.readouterr().out
    assert f"python -m {job.__name__} " in text
    defaults = cli.load_config(config_class, [])
    for key, _, default, meaning, _ in cli.list_options(config_class):
        value: Any = defaults
        for part in key.split("."):
            value = getattr(value, part)
        assert value == default, key
        assert f"  {key}=" in text
        assert meaning


@pytest.mark.parametrize(("job", "config_class"), JOBS, ids=[job.__name__ for job, _ in JOBS])
def test_every_job_without_arguments_names_a_required_option(
    capsys: pytest.CaptureFixture[str], job: Any, config_class: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(job.main, config_class, job.ABOUT, []) == 2
    error = capsys.readouterr().err
    assert any(text in error for text in ("= is required", "give exactly one of", "make it with"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", sorted((Path(cli.__file__).parent / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_named_configs_load_in_the_job_of_their_first_line(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    (config_class,) = (config_class for job, config_class in JOBS if f"-m {job.__name__} " in first)
    values = yaml.safe_load(path.read_text())
    config = cli.load_config(config_class, [f"config={path}"])
    for key, value in values.items():
        if not isinstance(value, dict):
            assert getattr(config, key) == value or str(getattr(config, key)) == str(value)  # `workers` takes 2 and 1-8


def test_saved_settings_load_again(tmp_path: Path) -> None:
    config = cli.load_config(TrainConfig, ["steps=7", "model.base_width=4", "name=x"])
    save_settings(config, str(tmp_path / "below" / "settings.yaml"))
    assert cli.load_config(TrainConfig, [f"config={tmp_path}/below/settings.yaml"]) == config


@pytest.mark.parametrize("module", ["jobs", "jobs.acquire"])
def test_help_into_a_closed_pipe_ends_without_a_traceback(module: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", module, "--help"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")
