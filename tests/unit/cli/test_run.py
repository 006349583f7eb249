"""`dreamd run` around a stand-in for the composition root: signals, streams, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from daemon.service.logs import log_path

STAND_IN = """
import sys, threading, types
import daemon
from daemon.domain.errors import EngineError, LockedError, StopRequested
from daemon.cycle.guard import Pause
from daemon.domain.states import Outcome
from daemon.service.scheduler import Service

def hang(observer):          # a stage that never looks up
    observer.log("working")
    threading.Event().wait()

def give_way(observer, stop):
    print("a library prints", flush=True)
    observer.log("working")
    while not stop.is_set:
        threading.Event().wait(0.01)
    stop.check()

def serve(loaded, observer, stop, *, cycles, notifier):
    kind = {kind!r}
    if kind == "locked":
        raise LockedError("another daemon owns the run")
    if kind == "bug":
        raise ZeroDivisionError("oops")
    stages = {{
        "hang": lambda: hang(observer),
        "wait": lambda: give_way(observer, stop),
        "open": lambda: Pause(30.0, "2 rollbacks in a row"),
    }}
    return Service(stages.get(kind, lambda: Outcome.PROMOTED), stop, 0.0, cycles).run()

daemon.app = types.SimpleNamespace(serve=serve)
from daemon.__main__ import main
sys.argv = ["dreamd", "run", *{options!r}]
main()
"""


def start(state_dir: Path, kind: str, *options: str) -> subprocess.Popen[str]:
    code = STAND_IN.format(kind=kind, options=["--state-dir", str(state_dir), *options])
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=state_dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def until(process: subprocess.Popen[str], event: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == event:
            return
    pytest.fail(f"no {event}")


def test_a_second_interrupt_ends_it_at_once_with_130(state_dir: Path) -> None:
    """A stage that never gives way holds a first Ctrl-C up, but not the second."""
    with start(state_dir, "hang") as process:
        until(process, "working")
        process.send_signal(signal.SIGINT)
        until(process, "stop_requested")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.endswith("dreamd: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_ends_it_with_0_and_stdout_is_for_the_log_alone(state_dir: Path, number: signal.Signals) -> None:
    """As soon as the stage gives way; the log says which signal it was.

    What a library prints to stdout goes to stderr; stdout and the file have the same JSON lines.
    """
    with start(state_dir, "wait") as process:
        until(process, "working")
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert errors == "a library prints\n"
    assert [(event["event"], event["reason"]) for event in events(output)] == [("stop_requested", number.name)]
    assert [event["event"] for event in events(log_path(state_dir).read_text())] == ["working", "stop_requested"]


def test_an_error_is_logged_and_printed_and_gives_the_exit_code(state_dir: Path) -> None:
    """One JSON line for machines, one line on stderr for people, the documented code for systemd."""
    with start(state_dir, "locked") as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert errors == "dreamd: error: another daemon owns the run\n"
    last = events(output)[-1]
    assert (last["event"], last["error"], last["exit_code"]) == ("daemon_failed", "LockedError", 75)


def test_a_breaker_that_opens_on_the_way_ends_it_with_69(state_dir: Path) -> None:
    """The cycles that were asked for cannot run: the breaker's own reason for people, and a line for machines."""
    with start(state_dir, "open", "--cycles", "5") as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 69
    assert errors == "dreamd: error: nothing is trained: 2 rollbacks in a row\n"
    last = events(output)[-1]
    assert (last["event"], last["error"], last["exit_code"]) == ("daemon_failed", "BreakerOpenError", 69)


def test_in_pretty_mode_an_error_is_said_once(state_dir: Path) -> None:
    """The console leaves the line of the log out."""
    with start(state_dir, "locked", "--log", "pretty") as process:
        _, errors = process.communicate(timeout=60)
    assert errors.count("another daemon owns the run") == 1


def test_a_bug_ends_with_70(state_dir: Path) -> None:
    """With its traceback on stderr."""
    with start(state_dir, "bug") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 70
    assert "ZeroDivisionError: oops" in errors


def test_after_some_cycles_it_says_where_everything_is(state_dir: Path) -> None:
    """Database, head, log, and three commands that lead to this run again."""
    with start(state_dir, "finish", "--cycles", "2", "--log", "pretty") as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    for part in ("2 cycles finished", "dreamd.sqlite3", "checkpoints/cycle-000001", "dreamd.log"):
        assert part in output
    commands = output.partition("try next:\n")[2].splitlines()
    assert len(commands) == 3
    assert all(command.endswith(f"--state-dir {state_dir}") for command in commands)


AS_NOBODY = """
import os, sys
from daemon.__main__ import main
if os.geteuid() == 0:
    os.seteuid(65534)
sys.argv = ["dreamd", *sys.argv[1:]]
main()
"""


def test_a_closed_directory_above_the_state_ends_with_77() -> None:
    """Who may not even look whether the state directory is there gets its path and the fix, and no traceback."""
    with tempfile.TemporaryDirectory(prefix="dreamd-closed-") as name:
        closed = Path(name) / "closed"
        closed.mkdir(mode=0o000)
        Path(name).chmod(0o755)  # every user may come so far
        state = closed / "state"
        ended = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, "run", "--cycles", "1", "--state-dir", str(state)],
            cwd=name,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        closed.chmod(0o700)
    assert ended.returncode == 77, ended.stderr
    assert ended.stderr.startswith(f"dreamd: error: {state}: this user may not enter a directory above it")
    assert ended.stderr.count("\n") == 1
