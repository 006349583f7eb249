"""One daemon per run: a lock that the operating system or the server frees when its holder dies."""

from __future__ import annotations

import fcntl
import os
from time import monotonic, sleep
from types import TracebackType
from typing import IO, Self

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from daemon.domain.errors import DatabaseError, LockedError, PermissionDeniedError
from daemon.domain.hashing import derive_seed
from daemon.storage.database import connection_lost, database_errors, redacted, sqlite_path

_OWN_SESSION_S = 20


class RunLock:
    """Held while its `with` block runs. SQLite: flock on `FILE.lock`. PostgreSQL: a session's advisory lock.

    SQLite has one writer per file, so there it is the file that is locked, whichever run is meant.

    Raises:
        LockedError: another process holds it; names that process where it is known.
        PermissionDeniedError: the lock file cannot be written.
    """

    def __init__(self, engine: Engine, run_name: str) -> None:
        self._engine = engine
        self._run_name = run_name
        self._file: IO[str] | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        if self._engine.dialect.name == "sqlite":
            self._lock_file()
        else:
            self._lock_session()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Closing is what frees either lock. The file stays: removing it would let two processes lock two files.
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def renew(self) -> None:
        """Make sure that the lock is still held: a server that was restarted forgot it.

        Raises:
            LockedError: another process was faster.
            DatabaseError: the server does not answer.
        """
        lost = self._connection
        if lost is None or self._is_alive(lost):
            return
        deadline = monotonic() + _OWN_SESSION_S
        while True:
            try:
                self._lock_session()
                break
            except LockedError as error:
                # The server may not have noticed yet that this process's own session is gone.
                if f"pid {os.getpid()})" not in str(error) or monotonic() > deadline:
                    raise
            sleep(0.2)
        lost.close()

    def _is_alive(self, connection: Connection) -> bool:
        if connection.invalidated:  # asked again it would connect anew, without the lock
            return False
        try:
            with database_errors(self._engine):
                connection.execute(sa.select(1))
        except DatabaseError as error:
            if connection_lost(error):
                return False
            raise
        return True

    def _lock_file(self) -> None:
        database = sqlite_path(self._engine.url)
        assert database is not None
        path = database.with_name(f"{database.name}.lock")
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise PermissionDeniedError(f"{path}: {error.strerror}; check its owner and mode") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            file.close()
            raise self._locked(str(database), holder) from None
        file.truncate(0)
        file.write(f"run {self._run_name}, pid {os.getpid()}\n")
        file.flush()
        self._file = file

    def _lock_session(self) -> None:
        key = derive_seed("run lock", self._run_name)
        with database_errors(self._engine):
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            try:
                # Its own session, outside the pool: closing it closes the session, and with it the lock.
                connection.detach()
                if not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(key))):
                    raise self._locked(redacted(self._engine.url), _session_holding(connection, key))
                name = f"dreamd run {self._run_name}, pid {os.getpid()}"
                connection.execute(sa.select(sa.func.set_config("application_name", name, False)))
            except BaseException:
                connection.close()
                raise
        self._connection = connection

    def _locked(self, database: str, holder: str) -> LockedError:
        known = f" (held by {holder})" if holder else ""
        return LockedError(
            f"run {self._run_name} in {database}: another dreamd owns it{known}; stop that one first, "
            "or wait for it to end"
        )


def _session_holding(connection: Connection, key: int) -> str:
    """The holder's application name, which carries its run and pid; empty when this user may not see it."""
    found = connection.scalar(
        sa.text(
            "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid "
            "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 "
            "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
            "AND l.classid::bigint = :high AND l.objid::bigint = :low"
        ),
        {"high": key >> 32, "low": key & 0xFFFFFFFF},
    )
    return (found or "").removeprefix("dreamd ")
