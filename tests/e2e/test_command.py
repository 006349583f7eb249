"""The `dreamd` command on a complete small run: tiny model, transformers engine, real database, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import check_invariants, outcomes, write_config
from tiny_model import build_tiny_model

pytestmark = pytest.mark.slow


def start(directory: Path, *args: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DREAMD_")}
    return subprocess.Popen(
        [sys.executable, "-m", "daemon", *args],
        cwd=directory,
        env={**inherited, "OMP_NUM_THREADS": "1"},  # a tiny model is fastest on one thread
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(directory: Path, *args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    with start(directory, *args) as process:
        output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `dreamd init` has been called."""
    path = tmp_path_factory.mktemp("e2e")
    build_tiny_model(path / "model")
    write_config(path, "")
    code, output, errors = call(path, "init")
    assert code == 0, errors
    assert "base checkpoint  base" in output
    return path


def test_init_again_changes_nothing(directory: Path) -> None:
    """A second init finds everything and says so."""
    code, output, errors = call(directory, "init")
    assert code == 0, errors
    assert "(kept)" in output
    assert "was there already" in output


def test_a_pretty_run_says_what_happened_and_what_to_do_next(directory: Path) -> None:
    """Summaries and closing words on stdout; progress, as lines where there is no terminal, on stderr."""
    before = len(outcomes(directory / "dreamd.toml"))
    code, output, errors = call(directory, "run", "--cycles", "1", "--log", "pretty")
    assert code == 0, errors
    number = before + 1
    assert f"cycle {number} promoted" in output
    for part in ("scenarios", "sweep", "examples", "step", "held-out", "behaviour", "engine", "verdict", "seconds"):
        assert f"\n  {part}" in output
    assert "1 cycle finished" in output
    head = directory / "state" / "checkpoints" / f"cycle-{number:06d}"
    assert head.is_dir()
    assert f"head checkpoint  {head}" in output
    assert f"show {number}" in output
    assert "  sweep: done" in errors
    assert "\x1b[" not in output + errors


def test_a_service_run_logs_json_and_nothing_else(directory: Path) -> None:
    """Every line of stdout is a JSON object; one `cycle_finished` per cycle; the file has the same lines."""
    file = directory / "state" / "dreamd.log"
    before = len(file.read_text().splitlines())
    code, output, errors = call(directory, "run", "--cycles", "2")
    assert code == 0, errors
    lines: list[dict[str, Any]] = [json.loads(line) for line in output.splitlines()]
    assert [line["event"] for line in lines].count("cycle_finished") == 2
    assert all({"timestamp", "level", "event", "run"} <= set(line) for line in lines)
    assert file.read_text().splitlines()[before:] == output.splitlines()


def stopped_at(directory: Path, state: str) -> str:
    """Start the service, send SIGTERM when `state` is committed; what it logged from then on."""
    with start(directory, "run", "--log", "json") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("state") == state:
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stdout.read()
        process.communicate(timeout=300)
    assert process.returncode == 0
    return rest


def test_sigterm_ends_it_cleanly_and_the_next_start_goes_on(directory: Path) -> None:
    """Exit 0; before the claim the cycle is abandoned, after it published and finished at the next start."""
    assert '"stop_requested"' in stopped_at(directory, "swept")
    assert '"stop_requested"' in stopped_at(directory, "claimed")
    assert call(directory, "run", "--cycles", "1", "--log", "json")[0] == 0
    swept, claimed, _ = outcomes(directory / "dreamd.toml")[-3:]
    assert swept == "abandoned"
    assert claimed in ("promoted", "rolled_back")
    check_invariants(directory / "dreamd.toml")


def test_a_second_daemon_is_refused(directory: Path) -> None:
    """While one owns the run, another exits 75 with one line, and the first goes on."""
    with start(directory, "run", "--log", "json", "--set", "service.interval_s=3600") as first:
        assert first.stdout is not None
        for line in first.stdout:
            if json.loads(line)["event"] == "cycle_finished":
                break
        code, _, errors = call(directory, "run", "--cycles", "1", "--log", "json")
        assert code == 75
        assert errors.count("dreamd: error:") == 1
        assert first.poll() is None
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=300)
    assert first.returncode == 0


def test_rollback_and_export(directory: Path) -> None:
    """Back to the base, verified; the exported head is a folder that transformers loads."""
    code, output, errors = call(directory, "rollback", "--to", "0", "--yes")
    assert code == 0, errors
    assert "verified" in output
    assert json.loads(call(directory, "status", "--json")[1])["head"]["version"] == "base"
    code, _, errors = call(directory, "export", "head", "exported")
    assert code == 0, errors
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(directory / "exported")
    assert AutoTokenizer.from_pretrained(directory / "exported").chat_template


def test_doctor_finds_a_healthy_run_healthy(directory: Path) -> None:
    """Exit 0, and every check is named."""
    code, output, errors = call(directory, "doctor", "--json")
    assert code == 0, output + errors
    assert all(check["ok"] is not False for check in json.loads(output))


def test_doctor_ends_with_1_when_something_is_missing(directory: Path) -> None:
    """A missing model is a failed check with its fix, not a crash."""
    code, output, _ = call(directory, "doctor", "--set", "model.path=nowhere")
    assert code == 1
    assert "FAIL  model" in output
