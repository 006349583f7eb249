"""A run with two cycles in a real SQLite database, and ways to call the command on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import drive_to, make_checkpoint, make_engine_check, make_probe_result, make_verdict

from daemon.domain.states import CycleState, Decision
from daemon.storage.database import open_database
from daemon.storage.ledger import SqlLedger
from daemon.storage.migrate import upgrade
from daemon.storage.runs import create_run

Dreamd = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """State of run "default": cycle 1 promoted, cycle 2 rolled back, with probes and engine checks."""
    path = tmp_path / "state"
    path.mkdir()
    url = f"sqlite:///{path / 'dreamd.sqlite3'}"
    upgrade(url)
    engine = open_database(url)
    create_run(engine, "default", 7, "models/small", {}, [])
    ledger = SqlLedger.acquire(engine, "default")
    base = make_checkpoint()
    ledger.register_base(base)
    ledger.record_probes(base.version, _probes(3.0, passed=False), None)
    for number in (1, 2):
        cycle = drive_to(ledger, CycleState.PUBLISHED)
        assert cycle.candidate_version is not None
        ledger.record_probes(cycle.candidate_version, _probes(3.0 - 0.1 * number, passed=True), cycle)
        ledger.record_engine_check(make_engine_check(cycle.candidate_version), "vllm", cycle)
        cycle = ledger.probed(cycle)
        if number == 1:
            ledger.promote(cycle, make_verdict())
        else:
            ledger.roll_back(cycle, make_verdict(Decision.ROLL_BACK), ledger.head())
        ledger.record_seconds(ledger.cycle(number), {"sweep": 12.345, "step": 1.5})
    engine.dispose()
    return path


def _probes(nll: float, *, passed: bool) -> list:
    behaviour = [
        make_probe_result(probe, f"{probe}-1", 1.0 if passed else 0.0, passed=passed)
        for probe in ("accept", "push_back")
    ]
    return [make_probe_result("nll", "prose-01", nll), *behaviour]


@pytest.fixture
def dreamd(tmp_path: Path) -> Dreamd:
    """Runs the real command in a process of its own, in an empty directory, with only the DREAMD_ variables given."""

    def call(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        place = tmp_path / "cwd"
        place.mkdir(exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("DREAMD_")}
        return subprocess.run(
            [sys.executable, "-m", "daemon", *args],
            cwd=place,
            env=inherited | environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return call
