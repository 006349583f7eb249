"""`config check|show` and the options every command shares, in this process."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from daemon.cli.root import build
from daemon.domain.errors import PackError


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(*args: str, **environ: str) -> Result:
    return CliRunner(env=environ).invoke(build(), list(args), catch_exceptions=False)


def values(*args: str, **environ: str) -> dict[str, Any]:
    return dict(json.loads(call("config", "show", "--json", *args, **environ).stdout))


def test_check_names_the_file(tmp_path: Path) -> None:
    """It says ok and which file it read; without one it says that defaults are in force."""
    assert "built-in defaults" in call("config", "check").stdout
    (tmp_path / "mine.toml").write_text("[training]\nlr = 2e-5\n")
    assert call("config", "check", "--config", "mine.toml").stdout == "ok: mine.toml\n"


def test_show_gives_each_value_its_source(tmp_path: Path) -> None:
    """File, environment, flag and default, by precedence."""
    (tmp_path / "dreamd.toml").write_text("[training]\nlr = 2e-5\norpo_weight = 0.2\n[sweep]\nsamples = 3\n")
    shown = values("--set", "training.lr=4e-5", DREAMD_TRAINING__LR="3e-5", DREAMD_SWEEP__SAMPLES="4")
    assert shown["training.lr"] == {"value": 4e-5, "source": "--set"}
    assert shown["sweep.samples"] == {"value": 4, "source": "DREAMD_SWEEP__SAMPLES"}
    assert shown["training.orpo_weight"] == {"value": 0.2, "source": "dreamd.toml"}
    assert shown["training.eps"] == {"value": 1e-8, "source": "default"}


def test_the_short_options_are_flags() -> None:
    """--state-dir and --run set run.state_dir and run.name, over --set."""
    shown = values("--set", "run.name=one", "--run", "two", "--state-dir", "elsewhere")
    assert shown["run.name"]["value"] == "two"
    assert shown["run.state_dir"]["value"] == "elsewhere"


def test_show_writes_phases_as_they_stand_in_the_file(tmp_path: Path) -> None:
    """A plan is a list of inline tables without the unset keys; an unset key is "-"."""
    (tmp_path / "dreamd.toml").write_text('[[training.phases]]\nobjective = "sft"\nlr = 2e-5\n')
    assert values()["training.phases"]["source"] == "dreamd.toml"
    lines = " ".join(call("config", "show").stdout.split())
    assert '[{ objective = "sft", lr = 2e-05, schedule = "constant", warmup_cycles = 0,' in lines
    assert "training.lr - default" in lines


def test_the_table_is_not_cut_without_a_terminal() -> None:
    """A pipe gets whole lines: key, value and source of every key."""
    lines = call("config", "show").stdout.splitlines()
    assert lines[0].split() == ["key", "value", "source"]
    assert any(line.split() == ["training.eps", "1e-08", "default"] for line in lines)
    assert {line.split()[0] for line in lines[1:]} == set(values())


MALFORMED = "suite: clinic\nnll:\n- item: letter\n  kind: prose\n"
SUITES = [
    (MALFORMED, "mine.yaml:3: item letter: missing text", ""),
    (None, "mine.yaml: held-out file cannot be read: No such file or directory", "take it out of probes.suites"),
]


@pytest.mark.parametrize(("text", "says", "fix"), SUITES, ids=["malformed", "missing"])
def test_a_held_out_suite_that_cannot_be_used_is_found_before_a_run(
    text: str | None, says: str, fix: str, tmp_path: Path
) -> None:
    """`config check` refuses it with 78, as it does a pack, `doctor` fails; nobody is told to reinstall dreamd."""
    if text is not None:
        (tmp_path / "mine.yaml").write_text(text)
    suite = ("--set", 'probes.suites=["mine.yaml"]')
    with pytest.raises(PackError, match=re.escape(says)) as refused:
        call("config", "check", *suite)
    assert refused.value.exit_code == 78
    assert fix in str(refused.value)
    done = call("doctor", "--json", *suite)
    assert done.exit_code == 1
    (check,) = (check for check in json.loads(done.stdout) if check["name"] == "held-out suites")
    assert check["ok"] is False
    assert says in check["detail"]
    assert fix in check["fix"]
    assert "reinstall" not in str(refused.value) + done.stdout
