"""Open the run database, SQLite or PostgreSQL, and turn every failure into an error that names it and the fix."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.engine import URL, make_url

from daemon.domain import failpoints
from daemon.domain.errors import ConfigError, DatabaseError, PermissionDeniedError, UsageError

OLDEST_SAFE_SQLITE = (3, 51, 3)
"""Earlier libraries can corrupt a WAL database when two connections write or checkpoint at once."""

BUSY_TIMEOUT_S = 60
CONNECT_TIMEOUT_S = 10
_SECRETS = ("password", "sslpassword", "passfile")


def open_database(url: str, *, readonly: bool = False) -> Engine:
    """An engine whose every connection is set up, tried once.

    Args:
        url: `sqlite:///PATH` or `postgresql://USER@HOST/NAME`.
        readonly: never write and never create the file; works while the daemon writes.

    Raises:
        ConfigError: the URL cannot be used, or the SQLite library is one that can corrupt databases.
        PermissionDeniedError: the file or its directory may not be read or written.
        UsageError: read-only, and there is no such file.
        DatabaseError: unreachable, or not a database.
    """
    parsed = _parsed(url)
    engine = _sqlite(parsed, readonly) if parsed.drivername == "sqlite" else _postgresql(parsed, readonly)
    try:
        with database_errors(engine), engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))
    except BaseException:
        engine.dispose()
        raise
    return engine


def redacted(url: str | URL) -> str:
    """`url` fit for a message or a log line: no password in it."""
    try:
        parsed = make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        return "(a malformed database URL)"
    hidden = {key: "***" for key in parsed.query if key.lower() in _SECRETS}
    return parsed.update_query_dict(hidden).render_as_string(hide_password=True)


def sqlite_path(url: str | URL) -> Path | None:
    """The file of an SQLite URL; None for PostgreSQL."""
    parsed = _parsed(url)
    return Path(parsed.database or "") if parsed.drivername == "sqlite" else None


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees one moment of the database and takes no lock that a writer waits for."""
    options: dict[str, Any] = {}
    if engine.dialect.name == "postgresql":
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with database_errors(engine), engine.connect().execution_options(**options) as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A write transaction: committed as a whole at the end of the block, or not at all."""
    options = {"sqlite_begin": "IMMEDIATE"}
    with database_errors(engine), engine.connect().execution_options(**options) as connection, connection.begin():
        yield connection
        failpoints.hit("ledger.commit")
    failpoints.hit("ledger.committed")


@contextmanager
def database_errors(engine: Engine) -> Iterator[None]:
    """Turn SQLAlchemy's errors into ours: which database, what it said, what to do; never the statement's values."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise _translated(engine.url, error.orig) from error


def connection_lost(error: DatabaseError) -> bool:
    """Whether the server went away, or cannot be reached yet: what was asked of it may have happened or not."""
    cause = error.__cause__
    if not isinstance(cause, sa.exc.DBAPIError) or "psycopg" not in type(cause.orig).__module__:
        return False
    # 57P01 to 57P03: the server stops, or starts; 08...: the connection broke. None: there was never one.
    state = getattr(cause.orig, "sqlstate", None)
    away = isinstance(cause, sa.exc.OperationalError) and (state is None or state.startswith(("57P", "08")))
    return bool(cause.connection_invalidated) or away


def _parsed(url: str | URL) -> URL:
    try:
        parsed = make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise ConfigError(
            "run.database_url is not a database URL; use sqlite:///PATH or postgresql://USER@HOST/NAME"
        ) from None
    if parsed.drivername == "sqlite" and parsed.database and parsed.database != ":memory:":
        return parsed
    if parsed.drivername in ("postgresql", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    raise ConfigError(f"{redacted(parsed)}: use sqlite:///PATH or postgresql://USER@HOST/NAME")


def require_safe_sqlite(version: tuple[int, ...]) -> None:
    """Refuse an SQLite library that can corrupt a WAL database.

    Raises:
        ConfigError: it is older than 3.51.3.
    """
    if version < OLDEST_SAFE_SQLITE:
        found = ".".join(map(str, version))
        raise ConfigError(
            f"SQLite {found} can corrupt a database in WAL mode; dreamd needs 3.51.3 or newer: "
            "reinstall the `pysqlite3` wheel, which brings its own"
        )


def _sqlite(url: URL, readonly: bool) -> Engine:
    from pysqlite3 import dbapi2

    require_safe_sqlite(dbapi2.sqlite_version_info)
    path = Path(url.database or "").absolute()
    _check_readable(path) if readonly else _make_writable(path)

    def connect() -> Any:
        if not readonly:
            return _configured(dbapi2, f"file:{quote(str(path))}")
        try:
            return _configured(dbapi2, f"file:{quote(str(path))}?mode=ro")
        except dbapi2.OperationalError:
            # Without write permission in the directory SQLite cannot make the WAL's index. With no WAL there
            # is nothing in it either: read the file alone.
            if path.with_name(f"{path.name}-wal").exists() or os.access(path.parent, os.W_OK):
                raise
            return _configured(dbapi2, f"file:{quote(str(path))}?mode=ro&immutable=1")

    engine = sa.create_engine(url, module=dbapi2, creator=connect)
    sa.event.listen(engine, "begin", _begin)
    return engine


def _configured(dbapi2: Any, uri: str) -> Any:
    # isolation_level None: the driver begins nothing by itself, `_begin` does.
    connection = dbapi2.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        if "mode=ro" in uri:
            connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        else:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _begin(connection: Connection) -> None:
    """Writers take the write lock at once: a lock taken halfway could not wait, and would fail instead."""
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('sqlite_begin', 'DEFERRED')}")


def _make_writable(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise PermissionDeniedError(f"{path.parent}: cannot be created: {error.strerror}") from None
    except OSError as error:
        raise PermissionDeniedError(f"{path.parent}: not writable: {error.strerror}") from None
    for place in (path.parent, path):
        if place.exists() and not os.access(place, os.W_OK):
            raise PermissionDeniedError(f"{place}: not writable by this user; change its owner or run.state_dir")


def _check_readable(path: Path) -> None:
    # Never by opening it: closing any descriptor of the file drops every lock that this process holds on it (POSIX),
    # and the next `sqlite3` of somebody else would then delete the WAL under the daemon.
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path}: no such database; `dreamd init` creates it") from None
    except PermissionError:
        raise PermissionDeniedError(f"{path}: not readable by this user; check its owner and mode") from None
    if S_ISDIR(found.st_mode):
        raise UsageError(f"{path}: a directory, not a database file")
    if not os.access(path, os.R_OK):
        raise PermissionDeniedError(f"{path}: not readable by this user; check its owner and mode")


def _postgresql(url: URL, readonly: bool) -> Engine:
    arguments: dict[str, Any] = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_TIMEOUT_S}
    if "application_name" not in url.query:
        arguments["application_name"] = "dreamd"
    if readonly:
        arguments["options"] = "-c default_transaction_read_only=on"
    # pre_ping: after a restart of the server the pool's connections are dead, and the next transaction must not be.
    return sa.create_engine(url, pool_pre_ping=True, connect_args=arguments)


def _translated(url: URL, cause: BaseException | None) -> Exception:
    said = " ".join(str(cause).split())
    if url.drivername == "sqlite":
        return _sqlite_error(url.database or "", said)
    return DatabaseError(f"{redacted(url)}: {said}; check run.database_url and that the server runs")


def _sqlite_error(path: str, said: str) -> Exception:
    if "not a database" in said or "malformed" in said or "corrupt" in said:
        return DatabaseError(
            f"{path}: not a SQLite database, or a damaged one ({said}); restore a backup, "
            "or move it away and run `dreamd init`"
        )
    if "readonly database" in said or "unable to open" in said:
        return PermissionDeniedError(f"{path}: {said}; check owner and mode of the file and of its directory")
    if "full" in said:
        return DatabaseError(f"{path}: {said}; nothing was committed: free some space on that disk")
    if "locked" in said:
        return DatabaseError(f"{path}: {said} for {BUSY_TIMEOUT_S} s; which other program writes to it?")
    if "no such table" in said or "no such column" in said:
        return DatabaseError(f"{path}: {said}; run `dreamd db upgrade`")
    return DatabaseError(f"{path}: {said}; nothing was committed")
