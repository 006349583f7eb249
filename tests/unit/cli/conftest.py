"""A run with two cycles in a real SQLite database, and ways to call the command on it."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from builders import drive_to, make_checkpoint, make_engine_check, make_probe_result, make_verdict

from daemon.__main__ import main
from daemon.domain.probing import ProbeRun
from daemon.domain.states import CycleState, Decision, ProbeReason
from daemon.storage.database import open_database
from daemon.storage.ledger import SqlLedger
from daemon.storage.lock import RunLock
from daemon.storage.runs import create_run


@dataclass(frozen=True)
class Done:
    """How a call of the command ended."""

    returncode: int
    stdout: str
    stderr: str


Dreamd = Callable[..., Done]


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Path:
    """State of run "default": cycle 1 promoted, cycle 2 rolled back, with probes and engine checks. To be copied."""
    path = tmp_path_factory.mktemp("finished") / "state"
    path.mkdir()
    shutil.copy(sqlite_template, path / "dreamd.sqlite3")
    engine = open_database(f"sqlite:///{path / 'dreamd.sqlite3'}")
    create_run(engine, "default", 7, "models/small", {}, [])
    ledger = SqlLedger.acquire(engine, "default")
    base = make_checkpoint()
    ledger.register_base(base)
    ledger.record_probes(base.version, _probes(3.0, passed=False, reason=ProbeReason.ANCHOR), None)
    for number in (1, 2):
        cycle = drive_to(ledger, CycleState.PUBLISHED)
        assert cycle.candidate_version is not None
        ledger.record_probes(cycle.candidate_version, _probes(3.0 - 0.1 * number, passed=True), cycle)
        ledger.record_engine_check(make_engine_check(cycle.candidate_version), "vllm", cycle)
        cycle = ledger.probed(cycle)
        if number == 1:
            ledger.promote(cycle, make_verdict())
        else:
            head = ledger.head()
            ledger.roll_back(cycle, make_verdict(Decision.ROLL_BACK, to_version=head.version), head)
        ledger.record_seconds(ledger.cycle(number), {"sweep": 12.345, "step": 1.5, "probe": 4.5, "confirm": 0.5})
    engine.dispose()
    return path


@pytest.fixture
def state_dir(tmp_path: Path, finished_run: Path) -> Path:
    """A copy of `finished_run`."""
    return Path(shutil.copytree(finished_run, tmp_path / "state"))


def _probes(nll: float, *, passed: bool, reason: ProbeReason = ProbeReason.CORE) -> list[ProbeRun]:
    results = [
        make_probe_result("nll", "prose-01", nll),
        *(
            make_probe_result(probe, f"{probe}-1", 1.0 if passed else 0.0, passed=passed)
            for probe in ("accept", "push_back")
        ),
    ]
    return [
        ProbeRun(result.probe, reason, 0, f"suite of {result.probe}", (result,), seconds)
        for result, seconds in zip(results, (2.0, 1.25, 1.75), strict=True)
    ]


@pytest.fixture(scope="session")
def made_run(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Path:
    """The run of `stored_run`, to be copied."""
    from stored_run import make_stored_run  # brings torch, which most tests here do without

    state = tmp_path_factory.mktemp("stored") / "state"
    make_stored_run(state, sqlite_template)
    return state


@pytest.fixture
def state(tmp_path: Path, made_run: Path) -> Path:
    """A copy of `made_run`."""
    return Path(shutil.copytree(made_run, tmp_path / "stored"))


@pytest.fixture
def call(dreamd: Dreamd, state: Path) -> Dreamd:
    """`dreamd checkpoints ARGUMENTS` on `state`."""
    return lambda *arguments: dreamd("checkpoints", *arguments, "--state-dir", str(state))


@pytest.fixture
def daemon_runs(state: Path) -> Iterator[None]:
    """The run's lock, held as by a daemon."""
    engine = open_database(f"sqlite:///{state / 'dreamd.sqlite3'}")
    with RunLock(engine, "default"):
        yield
    engine.dispose()


@pytest.fixture
def dreamd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dreamd:
    """Runs the real command, in this process, in an empty directory, with only the DREAMD_ variables given."""

    def call(*args: str, **environ: str) -> Done:
        place = tmp_path / "cwd"
        place.mkdir(exist_ok=True)
        out, err = io.StringIO(), io.StringIO()
        with monkeypatch.context() as patch, Path(os.devnull).open() as nothing:
            for name in [name for name in os.environ if name.startswith("DREAMD_")]:
                patch.delenv(name)
            for name, value in environ.items():
                patch.setenv(name, value)
            patch.chdir(place)
            patch.setattr(sys, "argv", ["dreamd", *args])
            patch.setattr(sys, "stdin", nothing)
            with redirect_stdout(out), redirect_stderr(err):
                code = _ended_with(main)
        return Done(code, out.getvalue(), err.getvalue())

    return call


def _ended_with(command: Callable[[], None]) -> int:
    """The exit status that the process would have."""
    try:
        command()
    except SystemExit as ending:
        assert ending.code is None or isinstance(ending.code, int)
        return ending.code or 0
    return 0
