"""Fault 16: an engine that hangs, in this process and in one of its own. Real processes, real signals."""

from __future__ import annotations

import configparser
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import check_invariants, dream, outcomes, query

NewRun = Callable[..., Path]
Driver = Callable[..., int]
ROOT = Path(__file__).parents[2]
DEADLINE = {"deadline_s": 6.0}
"""Loading the tiny model on a busy machine must fit."""


def run_command(file: Path, failpoint: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and log lines of `dreamd run --cycles 2`."""
    done = subprocess.run(
        [sys.executable, "-m", "daemon", "run", "--cycles", "2", "--config", str(file)],
        cwd=ROOT,
        env={**os.environ, "DREAMD_TESTING": "1", "DREAMD_FAILPOINTS": failpoint, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=300,
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_sweep_that_hangs_ends_the_process_and_costs_nothing(new_run: NewRun) -> None:
    """Fault 16: the sweep never returns: exit 70 by itself, with one line that says where; nothing is spent.

    The cycle stands as planned; the next start abandons it, its scenarios come back, and training goes on.
    """
    file = new_run(sweep=DEADLINE)
    dream(file, 1)
    code, lines = run_command(file, "engine.generate=sleep:600@3")  # two checks of the engine come first
    assert code == 70
    (hung,) = [line for line in lines if line["event"] == "engine_hung"]
    assert lines[-1] == hung
    assert (hung["level"], hung["call"], hung["policy_version"]) == ("error", "generate", "cycle-000001")
    assert (hung["cycle"], hung["stage"], hung["seconds"], hung["exit_code"]) == (2, "sweep", 6.0, 70)
    assert any(frame.endswith(" generate") and "deadline.py" in frame for frame in hung["stack"])
    assert query(file, "select state from cycles where number = 2") == [("planned",)]
    assert query(file, "select count(*) from claims where cycle = 2") == [(0,)]
    dream(file, 1)
    assert outcomes(file) == ["promoted", "abandoned", "promoted"]
    check_invariants(file)


@pytest.mark.slow
def test_a_probe_that_hangs_loses_no_step(new_run: NewRun, driver: Driver) -> None:
    """Fault 16: the engine hangs when the candidate is measured: its cycle is finished by the next start."""
    file = new_run(sweep=DEADLINE)
    status = driver(file, "published+engine.generate=sleep:600")
    assert os.waitstatus_to_exitcode(status) == 70
    assert query(file, "select state from cycles") == [("published",)]
    dream(file, 0)
    assert outcomes(file) == ["promoted"]
    check_invariants(file)


@pytest.mark.slow
def test_the_third_hang_in_one_place_is_the_last(new_run: NewRun, driver: Driver) -> None:
    """Fault 16: tried again twice, then exit 69, at which the service manager starts it no more; a person does."""
    file = new_run(sweep=DEADLINE)
    codes = [os.waitstatus_to_exitcode(driver(file, "start+engine.generate=sleep:600")) for _ in range(3)]
    assert codes == [70, 70, 69]
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / "deploy" / "dreamd.service")
    never = unit["Service"]["RestartPreventExitStatus"].split()
    assert "69" in never and "70" not in never
    dream(file, 1)
    assert outcomes(file) == ["promoted"]
    check_invariants(file)


CHILD_ENGINE = """
import os, signal, subprocess, sys
from pathlib import Path
from daemon.sweep.deadline import DeadlineEngine

bystander = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

class CoreInAChild:
    name, policy_version, logprob_tolerance = "child", "base", 0.0

    def __init__(self):
        # The core, and a worker of its own, as with tensor parallelism.
        command = ["sh", "-c", "sleep 600 >/dev/null & echo $!; exec cat"]
        self.core = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.worker = int(self.core.stdout.readline())

    def generate(self, requests, progress):
        self.core.stdin.write("ask" + chr(10))
        self.core.stdin.flush()
        return [self.core.stdout.readline()]

def log(event, **fields):
    killed = sorted(fields["killed"]) == sorted([core.pid, worker])
    print(event, fields["call"], fields["exit_code"], killed, flush=True)

engine = DeadlineEngine(CoreInAChild, 2.0, Path(sys.argv[1]), log)
core, worker = engine._engine.core, engine._engine.worker
assert engine.generate([1], None) == ["ask" + chr(10)]
print(bystander.pid, core.pid, worker, flush=True)
os.kill(core.pid, signal.SIGSTOP)
engine.generate([1], None)
print("it came back", flush=True)
"""


def test_an_engine_core_that_is_stopped_is_killed_with_its_workers(tmp_path: Path) -> None:
    """Fault 16: the engine core, a process of its own, is stopped with SIGSTOP while it is asked.

    The daemon ends with 70; core and worker are gone, a child that has nothing to do with the engine is not.
    """
    done = subprocess.run(
        [sys.executable, "-c", CHILD_ENGINE, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=120,
        text=True,
        check=False,
    )
    first, second = done.stdout.splitlines()
    bystander, core, worker = map(int, first.split())
    try:
        assert done.returncode == 70
        assert second == "engine_hung generate 70 True"
        assert [runs(core), runs(worker), runs(bystander)] == [False, False, True]
    finally:
        os.kill(bystander, signal.SIGKILL)


def runs(pid: int) -> bool:
    """Whether a process is there and not only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
