"""Transactions of the one ledger that owns a run, also when the server goes away in the middle of one.

A server that restarts takes every connection with it, and a COMMIT whose answer is lost may have happened or not.
So each write transaction leaves its own mark in the run's row: after a lost connection that mark is looked up, and
only work that is not there is done again, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from secrets import token_hex
from time import monotonic, sleep
from typing import Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from daemon.domain.errors import DatabaseError, FencedError
from daemon.storage.database import connection_lost, reading, writing
from daemon.storage.lock import RunLock
from daemon.storage.tables import runs
from daemon.storage.writes import Writes

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")

RECONNECT_S = 60
"""For so long a server may be away before an error is made of it; like SQLite's patience with a locked file."""
_RETRY_S = 0.5
_ATTEMPTS = 2


class FencedRun:
    """Reads and writes one run as its owner of `epoch`."""

    def __init__(self, engine: Engine, run_id: int, name: str, epoch: int, lock: RunLock | None = None) -> None:
        """
        Args:
            lock: held by this process; taken again when the server that kept it was restarted.
        """
        self.engine = engine
        self.run_id = run_id
        self.name = name
        self.epoch = epoch
        self._lock = lock

    def read(
        self,
        query: Callable[Concatenate[Connection, int, Arguments], Answer],
        *args: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Answer:
        """What `query` finds of this run, in a transaction of its own."""
        try:
            with reading(self.engine) as connection:
                return query(connection, self.run_id, *args, **named)
        except DatabaseError as error:
            self._reconnect(error)
        with reading(self.engine) as connection:
            return query(connection, self.run_id, *args, **named)

    def write(
        self,
        work: Callable[Concatenate[Writes, Arguments], Answer],
        *args: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Answer:
        """Do `work` in one transaction: committed once, or not at all.

        Raises:
            FencedError: another ledger took the run over; nothing was written.
            DatabaseError: nothing was committed; or the server is away and cannot be asked.
        """
        mark = token_hex(16)
        answers: list[Answer] = []
        for attempt in range(_ATTEMPTS):
            try:
                self._hold_lock()
                with self._transaction(mark) as writes:
                    answers.append(work(writes, *args, **named))
                break
            except DatabaseError as error:
                self._reconnect(error)
                if self._committed(mark):
                    break
                if attempt == _ATTEMPTS - 1:
                    raise
        return answers[-1]

    @contextmanager
    def _transaction(self, mark: str) -> Iterator[Writes]:
        """Holds the run's row, and is refused when another ledger took the run over."""
        with writing(self.engine) as connection:
            of_run = sa.update(runs).where(runs.c.id == self.run_id)
            self._require_epoch(connection.scalar(of_run.values(last_write=mark).returning(runs.c.epoch)))
            yield Writes(connection, self.run_id)

    def _committed(self, mark: str) -> bool:
        """Whether the transaction of that mark happened.

        The row's lock waits for the end of a transaction that the server has not given up yet.
        """
        with writing(self.engine) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.set_config("lock_timeout", f"{RECONNECT_S}s", True)))
            row = connection.execute(
                sa.select(runs.c.epoch, runs.c.last_write).where(runs.c.id == self.run_id).with_for_update()
            ).one()
            self._require_epoch(row.epoch)
            return bool(row.last_write == mark)

    def _require_epoch(self, epoch: int | None) -> None:
        if epoch != self.epoch:
            raise FencedError(
                f"run {self.name}: another dreamd took it over (epoch {epoch}, this one has {self.epoch}); "
                "nothing was written"
            )

    def _reconnect(self, error: DatabaseError) -> None:
        """Wait until the server answers again, and own the run's lock again; an error of another kind goes up."""
        if not connection_lost(error):
            raise error
        deadline = monotonic() + RECONNECT_S
        while True:
            try:
                with reading(self.engine) as connection:
                    connection.execute(sa.select(1))
                break
            except DatabaseError as again:
                if not connection_lost(again) or monotonic() > deadline:
                    raise
            sleep(_RETRY_S)
        self._hold_lock()

    def _hold_lock(self) -> None:
        """Connections come back by themselves after a restart of the server; the lock does not."""
        if self._lock is not None:
            self._lock.renew()
