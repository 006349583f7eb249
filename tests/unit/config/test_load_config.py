"""Reading the configuration: sources and their order, and what an error says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from daemon.config import Config, load_config
from daemon.config.load import DEFAULT_FILE
from daemon.domain.errors import ConfigError, PermissionDeniedError

REPOSITORY = Path(__file__).resolve().parents[3]
SHIPPED = sorted((REPOSITORY / "deploy").glob("*.toml"))


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refusal(text: str = "", *flags: str, **environ: str) -> str:
    """The message with which a configuration is refused."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(Path("bad.toml"), text), environ=environ, flags=flags)
    assert caught.value.exit_code == 78
    return str(caught.value)


def test_without_any_source_everything_has_its_default() -> None:
    """No file, no variable, no flag: the defaults, and every source says so."""
    loaded = load_config(environ={})
    assert loaded.config == Config()
    assert loaded.file is None
    assert loaded.source("training.lr") == "default"


def test_flags_beat_the_environment_beats_the_file_beats_the_defaults(tmp_path: Path) -> None:
    """Each source overrides the one before it, key by key, and is remembered."""
    file = write(tmp_path / "a.toml", "[training]\nlr = 2e-5\norpo_weight = 0.2\nweight_decay = 0.3\n")
    environ = {"DREAMD_TRAINING__LR": "3e-5", "DREAMD_TRAINING__ORPO_WEIGHT": "0.4"}
    loaded = load_config(file, environ=environ, flags=["training.lr=5e-5"])
    training = loaded.config.training
    assert (training.lr, training.orpo_weight, training.weight_decay, training.eps) == (5e-5, 0.4, 0.3, 1e-8)
    assert [loaded.source(f"training.{key}") for key in ("lr", "orpo_weight", "weight_decay", "eps")] == [
        "--set",
        "DREAMD_TRAINING__ORPO_WEIGHT",
        str(file),
        "default",
    ]


def test_a_later_flag_beats_an_earlier_one() -> None:
    """--set of the same key twice: the last one counts."""
    assert load_config(environ={}, flags=["run.name=a", "run.name=b"]).config.run.name == "b"


def test_the_file_is_the_argument_else_the_variable_else_the_default_file(tmp_path: Path) -> None:
    """In this order, and the variable that names the file is no key of the configuration."""
    write(DEFAULT_FILE, '[run]\nname = "default-file"\n')
    assert load_config(environ={}).config.run.name == "default-file"
    environ = {"DREAMD_CONFIG": str(write(tmp_path / "b.toml", '[run]\nname = "variable"\n'))}
    assert load_config(environ=environ).config.run.name == "variable"
    given = write(tmp_path / "c.toml", '[run]\nname = "argument"\n')
    assert load_config(given, environ=environ).config.run.name == "argument"


def test_other_variables_are_left_alone() -> None:
    """Only names that start with DREAMD_ are read."""
    assert load_config(environ={"PATH": "/bin", "TRAINING__LR": "1", "MYDREAMD_X": "1"}).config == Config()


@pytest.mark.parametrize(
    ("name", "text", "section", "key", "value"),
    [
        ("DREAMD_TRAINING__LR", "2e-5", "training", "lr", 2e-5),
        ("DREAMD_SWEEP__SAMPLES", "4", "sweep", "samples", 4),
        ("DREAMD_LOGGING__FILE", "false", "logging", "file", False),
        ("DREAMD_SWEEP__TEMPERATURES", "[0.2, 0.9]", "sweep", "temperatures", (0.2, 0.9)),
        ("DREAMD_SCENARIOS__PACKS", '["a.yaml", "b.yaml"]', "scenarios", "packs", (Path("a.yaml"), Path("b.yaml"))),
        ("DREAMD_RUN__NAME", "night=1", "run", "name", None),
    ],
)
def test_text_becomes_the_type_of_its_key(name: str, text: str, section: str, key: str, value: Any) -> None:
    """Variables and flags hold numbers, booleans and JSON lists; what does not fit the key is refused."""
    if value is None:
        assert "run.name" in refusal(**{name: text})
        return
    flag = f"{section}.{key}={text}"
    for loaded in (load_config(environ={name: text}), load_config(environ={}, flags=[flag])):
        assert getattr(getattr(loaded.config, section), key) == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[training]\nlrr = 1e-5\n", "training.lrr: unknown key; did you mean lr?"),
        ("[trainig]\nlr = 1e-5\n", "did you mean training?"),
        ("[training]\nzzz = 1\n", "known keys: objective, phases, lr"),
        ("lr = 1e-5\n", "lr: unknown key"),
        ("training = 3\n", "training"),
    ],
)
def test_an_unknown_key_is_refused_with_a_suggestion(text: str, says: str) -> None:
    """The message names the file, the key, and the nearest key or all of them."""
    message = refusal(text)
    assert message.startswith("bad.toml: ")
    assert says in message


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("training.lr", "0", "greater than 0"),
        ("training.lr", "1e-3", "allow_unsafe_lr"),
        ("training.lr", "fast", "number"),
        ("training.orpo_weight", "1.5", "less than or equal to 1"),
        ("sweep.samples", "0", "greater than or equal to 1"),
        ("sweep.engine", "magic", "vllm"),
        ("sweep.temperatures", "[0.1, 3.0]", "less than or equal to 2"),
        ("sweep.temperatures", "[]", "at least 1"),
        ("scenarios.general_fraction", "0.1", "0.25"),
        ("checkpoints.keep_last", "1", "greater than or equal to 2"),
        ("run.name", "a b", "pattern"),
        ("run.database_url", "mysql://h/db", "sqlite:///PATH"),
        ("run.seed", "-1", "greater than or equal to 0"),
        ("service.interval_s", "-1", "greater than or equal to 0"),
        ("logging.level", "loud", "info"),
    ],
)
def test_a_value_out_of_bounds_names_source_key_value_and_bound(key: str, value: str, says: str) -> None:
    """From a flag and from the environment alike."""
    section, name = key.split(".")
    variable = f"DREAMD_{section}__{name}".upper()
    for message, source in ((refusal("", f"{key}={value}"), "--set"), (refusal(**{variable: value}), variable)):
        assert message.startswith(f"{source}: {section}")
        assert says in message


def test_every_problem_is_named_at_once() -> None:
    """Two mistakes in two sources are two lines, each with its own source."""
    lines = refusal("[sweep]\nsamples = 0\n", "training.orpo_weight=2").splitlines()
    assert [line.split(":")[0] for line in lines] == ["bad.toml", "--set"]


def test_a_high_learning_rate_can_be_meant() -> None:
    """allow_unsafe_lr lifts the guard."""
    flags = ["training.lr=1.0", "training.allow_unsafe_lr=true"]
    assert load_config(environ={}, flags=flags).config.training.lr == 1.0


@pytest.mark.parametrize("flag", ["training.lr", "lr=1", "a.b.c=1", "=1"])
def test_a_malformed_flag_says_how_to_write_it(flag: str) -> None:
    """section.key=value, with an example."""
    assert "section.key=value" in refusal("", flag)


def test_a_malformed_variable_says_how_to_write_it() -> None:
    """One underscore is not two."""
    assert "DREAMD_SECTION__KEY" in refusal(**{"DREAMD_LR": "1"})


@pytest.mark.parametrize("text", ["[training\n", "lr = \n", "[run]\nname = 'a'\nname = 'b'\n"])
def test_a_file_that_is_not_toml_is_refused_with_its_line(text: str) -> None:
    """The parser's own words, line included."""
    message = refusal(text)
    assert "bad.toml: not a TOML file" in message
    assert "line" in message


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    """A file that was asked for is never replaced by defaults."""
    with pytest.raises(ConfigError, match=r"missing\.toml: no such file"):
        load_config(Path("missing.toml"), environ={})
    with pytest.raises(ConfigError, match="not a TOML file"):
        load_config(tmp_path, environ={})
    with pytest.raises(ConfigError, match="no such file"):
        load_config(environ={"DREAMD_CONFIG": "missing.toml"})


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Permissions bind: root drops its rights for the test."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_an_unreadable_file_is_a_permission_error(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Exit code 77, and the message names the file."""
    file = write(tmp_path / "secret.toml", "")
    file.chmod(0)
    request.getfixturevalue("as_nobody")
    with pytest.raises(PermissionDeniedError, match="secret") as caught:
        load_config(file, environ={})
    assert caught.value.exit_code == 77


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_every_shipped_configuration_is_valid(file: Path) -> None:
    """What deploy/ offers can be used as it is."""
    assert load_config(file, environ={}).file == file


def test_there_are_shipped_configurations() -> None:
    """The test above has something to test."""
    assert SHIPPED


def test_a_configuration_cannot_be_changed() -> None:
    """Sections are frozen: what was validated is what runs."""
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.training.lr = 1.0  # type: ignore[misc]


def test_every_key_says_what_it_is() -> None:
    """Each key that is not plain has its docstring; a unit or meaning can be looked up."""
    undocumented = {
        f"{section}.{name}"
        for section, values in Config.model_fields.items()
        for name, field in type(getattr(Config(), section)).model_fields.items()
        if values is not None and not field.description
    }
    assert undocumented <= {
        "training.betas",
        "training.eps",
        "logging.level",
    }


def test_errors_hide_passwords(tmp_path: Path) -> None:
    """A database URL that cannot be used is shown without its password: errors end up in logs."""
    file = write(tmp_path / "dreamd.toml", '[run]\ndatabase_url = "mysql://me:hunter2@host/runs"\n')
    with pytest.raises(ConfigError) as caught:
        load_config(file, environ={})
    assert "hunter2" not in str(caught.value)
    assert "mysql://me:***@host/runs" in str(caught.value)
