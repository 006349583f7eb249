"""The whole command: exit codes, what is printed where, and what is not imported."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_model import build_tiny_model

from daemon.cli import history

Dreamd = Callable[..., Any]

READING = [
    ("status",),
    ("cycles",),
    ("show", "1"),
    ("checkpoints",),
    ("probes",),
    ("breaker", "status"),
    ("governor",),
    ("config", "show"),
    ("config", "check"),
    ("db", "current"),
]


@pytest.mark.parametrize("command", [command for command in READING if command != ("config", "check")], ids=" ".join)
def test_json_is_json(command: tuple[str, ...], dreamd: Dreamd, state_dir: Path) -> None:
    """With --json stdout is one JSON document."""
    done = dreamd(*command, "--json", "--state-dir", str(state_dir))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) is not None


def test_reading_commands_work_without_anything_heavy(state_dir: Path) -> None:
    """Each prints something and imports no torch, vllm, alembic, apscheduler: so it starts in well under a second."""
    code = (
        "import contextlib, io, sys\n"
        "from daemon.cli.root import build\n"
        "heavy = {'torch', 'transformers', 'vllm', 'alembic', 'apscheduler', 'accelerate', 'safetensors', 'numpy'}\n"
        f"for command in {[*READING, ('--help',)]!r}:\n"
        "    output = io.StringIO()\n"
        f"    place = [] if command == ('--help',) else ['--state-dir', {str(state_dir)!r}]\n"
        "    try:\n"
        "        with contextlib.redirect_stdout(output):\n"
        "            build()([*command, *place])\n"
        "    except SystemExit as ending:\n"
        "        assert not ending.code, (command, ending.code)\n"
        "    assert output.getvalue().strip(), command\n"
        "    assert not heavy & set(sys.modules), (command, heavy & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=state_dir, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_status_names_head_and_last_cycle(dreamd: Dreamd, state_dir: Path) -> None:
    """After a rollback the head is the checkpoint before it."""
    done = dreamd("status", "--state-dir", str(state_dir))
    assert "cycle-000001 (promoted)" in done.stdout
    assert "cycle 2 rolled_back" in done.stdout
    found = json.loads(dreamd("status", "--json", "--state-dir", str(state_dir)).stdout)
    assert found["head"]["version"] == "cycle-000001"


def test_cycles_can_be_limited(dreamd: Dreamd, state_dir: Path) -> None:
    """--limit 1 shows the newest."""
    found = json.loads(dreamd("cycles", "--limit", "1", "--json", "--state-dir", str(state_dir)).stdout)
    assert [row["cycle"] for row in found] == [2]


USAGE = [
    (("show", "9"), "no cycle 9"),
    (("export", "latest", "out"), "head"),
    (("rollback",), "--yes"),
    (("status", "--run", "other"), "other"),
    (("nonsense",), "nonsense"),
    (("run", "--cycles", "0"), "--cycles"),
]


@pytest.mark.parametrize(("command", "says"), USAGE, ids=[" ".join(command) for command, _ in USAGE])
def test_what_does_not_exist_ends_with_2(command: tuple[str, ...], says: str, dreamd: Dreamd, state_dir: Path) -> None:
    """A cycle, checkpoint, run or command that does not exist: exit 2, named on stderr, stdout empty."""
    done = dreamd(*command, DREAMD_RUN__STATE_DIR=str(state_dir))
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""


def test_export_does_not_overwrite(dreamd: Dreamd, state_dir: Path) -> None:
    """A directory that holds something is refused before anything is loaded."""
    done = dreamd("export", "head", str(state_dir), "--state-dir", str(state_dir))
    assert done.returncode == 2
    assert "not an empty directory" in done.stderr


BAD_CONFIG = [
    ("[training]\nlrr = 1e-5\n", "did you mean lr?"),
    ("[training]\nlr = 11.0\n", "lr = 11.0"),
    ("[training\n", "not a TOML file"),
]


@pytest.mark.parametrize(("text", "says"), BAD_CONFIG, ids=["unknown key", "out of range", "not TOML"])
@pytest.mark.parametrize("command", [("config", "check"), ("status",), ("run",), ("init",), ("doctor",)], ids=" ".join)
def test_bad_configuration_ends_with_78(
    text: str, says: str, command: tuple[str, ...], dreamd: Dreamd, tmp_path: Path
) -> None:
    """Every command refuses it with one message that names file and fix, and changes nothing."""
    file = tmp_path / "bad.toml"
    file.write_text(text)
    done = dreamd(*command, "--config", str(file))
    assert done.returncode == 78
    assert done.stderr.startswith(f"dreamd: error: {file}: ")
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "cwd").iterdir()) == []


def test_no_configuration_file_at_the_given_place_ends_with_78(dreamd: Dreamd) -> None:
    """--config of a file that is not there is not quietly replaced by defaults."""
    done = dreamd("config", "check", "--config", "missing.toml")
    assert done.returncode == 78
    assert "missing.toml" in done.stderr


def test_a_database_of_a_newer_schema_ends_with_78_before_anything_is_loaded(dreamd: Dreamd, state_dir: Path) -> None:
    """Both reading and running refuse it, and the database stays as it is."""
    database = state_dir / "dreamd.sqlite3"
    connection = sqlite3.connect(database)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    before = database.read_bytes()
    for command in (("status",), ("run", "--cycles", "1")):
        done = dreamd(*command, "--state-dir", str(state_dir))
        assert done.returncode == 78
        assert "newer" in done.stderr
    assert database.read_bytes() == before


def test_running_without_init_says_so_and_makes_nothing(dreamd: Dreamd, tmp_path: Path) -> None:
    """`dreamd run` in an empty directory names `dreamd init` and leaves the directory empty."""
    done = dreamd("run", "--cycles", "1")
    assert done.returncode == 2
    assert "dreamd init" in done.stderr
    assert list((tmp_path / "cwd").iterdir()) == []


def test_init_beside_an_old_state_directory_keeps_the_settings_that_the_way_out_needs(
    dreamd: Dreamd, tmp_path: Path
) -> None:
    """Refused with 78 for the journal it finds; the new file stays, with it the journal is adopted; init succeeds."""
    build_tiny_model(tmp_path / "model")
    log = tmp_path / "state" / "checkpoints" / "claims.log"
    log.parent.mkdir(parents=True)
    log.write_text(f"run default\n3 scenario {'a' * 64}\n")
    at = ("--config", str(tmp_path / "dreamd.toml"))
    init = ("init", *at, "--state-dir", str(tmp_path / "state"), "--set", f"model.path={tmp_path / 'model'}")
    done = dreamd(*init)
    assert (done.returncode, "`dreamd db adopt-journal`" in done.stderr) == (78, True)
    assert dreamd("db", "adopt-journal", *at).stdout.startswith("1 claims that only")
    assert dreamd(*init).returncode == 0


def test_an_unexpected_exception_ends_with_70_and_is_called_a_bug(
    dreamd: Dreamd, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traceback and a plea on stderr."""

    def broken(*args: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(history, "_status_pairs", broken)
    done = dreamd("status", "--state-dir", str(state_dir))
    assert done.returncode == 70
    assert "ZeroDivisionError: oops" in done.stderr
    assert "bug in dreamd" in done.stderr


def test_config_show_hides_the_password(dreamd: Dreamd) -> None:
    """Neither the table nor the JSON contains it."""
    for extra in ((), ("--json",)):
        done = dreamd("config", "show", *extra, DREAMD_RUN__DATABASE_URL="postgresql://me:hunter2@db/dreamd")
        assert done.returncode == 0
        assert "hunter2" not in done.stdout + done.stderr
        assert "postgresql://me:***@db/dreamd" in done.stdout


def test_version_in_a_process_of_its_own(tmp_path: Path) -> None:
    """`python -m daemon --version` prints name and version, and the process ends with 0."""
    done = subprocess.run(
        [sys.executable, "-m", "daemon", "--version"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "dreamd 0.1.0\n", "")
