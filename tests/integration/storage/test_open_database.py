"""Opening a database that cannot be used: one clear error, the right exit code, nothing changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from daemon.domain.errors import DatabaseError, PermissionDeniedError, UsageError
from daemon.storage import tables
from daemon.storage.database import open_database, reading, writing

NOBODY = 65534


def test_sqlite_is_opened_safely(sqlite_template: Path, open_engine: Callable[..., Engine]) -> None:
    """WAL, full synchronisation, foreign keys, a minute's patience, and a library without the WAL bug."""
    with open_engine(f"sqlite:///{sqlite_template}").connect() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
        version = connection.exec_driver_sql("SELECT sqlite_version()").scalar()
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 60_000}
    assert tuple(map(int, version.split("."))) >= (3, 51, 3)


def test_a_path_with_odd_characters(tmp_path: Path, open_engine: Callable[..., Engine]) -> None:
    """A directory is created as needed, and no character of a path is taken for part of a URI."""
    path = tmp_path / "new dir" / "50% #1.sqlite3"
    open_engine(f"sqlite:///{path}")
    assert path.exists()
    open_engine(f"sqlite:///{path}", readonly=True)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    """A text file in the database's place is named, with a fix, and left alone."""
    path = tmp_path / "dreamd.sqlite3"
    path.write_text("not a database at all, but long enough to look at " * 20)
    before = path.read_bytes()
    for readonly in (False, True):
        with pytest.raises(DatabaseError, match=r"dreamd\.sqlite3: not a SQLite database.*restore a backup") as caught:
            open_database(f"sqlite:///{path}", readonly=readonly)
        assert caught.value.exit_code == 75
    assert path.read_bytes() == before


def test_a_damaged_database(sqlite_template: Path, tmp_path: Path, open_engine: Callable[..., Engine]) -> None:
    """Pages overwritten at rest show up as a DatabaseError that names the file, not as a traceback."""
    path = tmp_path / "dreamd.sqlite3"
    damaged = bytearray(sqlite_template.read_bytes())
    damaged[4096:] = b"\xff" * (len(damaged) - 4096)
    path.write_bytes(damaged)
    expected = pytest.raises(DatabaseError, match=r"dreamd\.sqlite3: not a SQLite database, or a damaged one")
    with expected, reading(open_engine(f"sqlite:///{path}")) as connection:
        connection.execute(sa.select(tables.runs)).all()


def test_a_missing_file_is_not_created_by_a_reader(tmp_path: Path) -> None:
    """A reading command on a missing database says how to make one and makes none."""
    path = tmp_path / "dreamd.sqlite3"
    with pytest.raises(UsageError, match="no such database; `dreamd init`"):
        open_database(f"sqlite:///{path}", readonly=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="a directory, not a database"):
        open_database(f"sqlite:///{tmp_path}", readonly=True)


def test_a_state_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """A file where the directory should be: exit 77, and the file stays."""
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(PermissionDeniedError, match="state: cannot be created") as caught:
        open_database(f"sqlite:///{tmp_path / 'state' / 'dreamd.sqlite3'}")
    assert caught.value.exit_code == 77


OPEN_AS_ANOTHER_USER = """
import os, sys
from daemon.domain.errors import DreamdError
from daemon.storage import database, runs, queries  # imported while this user still may
import pysqlite3.dbapi2, sqlalchemy.dialects.sqlite.pysqlite
os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
try:
    engine = database.open_database(sys.argv[2], readonly=sys.argv[3] == "ro")
    with database.reading(engine) as connection:
        print("read", connection.exec_driver_sql("SELECT COUNT(*) FROM runs").scalar())
except DreamdError as error:
    print(error.exit_code, error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_a_reader_without_write_permission(sqlite_template: Path, open_engine: Callable[..., Engine]) -> None:
    """Another user may read a database whose directory it cannot write, stopped or live; writing is exit 77."""
    directory = Path("/tmp") / f"dreamd-test-{os.getpid()}"  # pytest's own directories are closed to others
    directory.mkdir(mode=0o755)
    path = directory / "dreamd.sqlite3"
    try:
        path.write_bytes(sqlite_template.read_bytes())
        path.chmod(0o644)
        url = f"sqlite:///{path}"
        assert _as_nobody(url, "ro") == "read 0"
        assert _as_nobody(url, "rw").startswith(f"77 {directory}: not writable")
        with open_engine(url).connect():
            assert _as_nobody(url, "ro") == "read 0"
        path.chmod(0o600)
        assert _as_nobody(url, "ro").startswith(f"77 {path}: not readable")
    finally:
        for leftover in directory.iterdir():
            leftover.unlink()
        directory.rmdir()


def _as_nobody(url: str, mode: str) -> str:
    command = [sys.executable, "-c", OPEN_AS_ANOTHER_USER, str(NOBODY), url, mode]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_full_disk_is_said_to_be_full(
    sqlite_template: Path, tmp_path: Path, open_engine: Callable[..., Engine]
) -> None:
    """When the file cannot grow the transaction is rolled back, and the error says it is space that lacks."""
    path = tmp_path / "dreamd.sqlite3"
    path.write_bytes(sqlite_template.read_bytes())
    engine = open_engine(f"sqlite:///{path}")
    with (
        pytest.raises(DatabaseError, match="full; nothing was committed: free some space"),
        writing(engine) as connection,
    ):
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        connection.exec_driver_sql("CREATE TABLE filler AS SELECT hex(randomblob(9000)) AS x FROM sqlite_master")


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    """An unreachable PostgreSQL is a DatabaseError that names it and hides the password."""
    with pytest.raises(DatabaseError, match=r"check run\.database_url and that the server runs") as caught:
        open_database(f"postgresql://ann:s3cret@/x?host={tmp_path}")
    assert "s3cret" not in str(caught.value)
    assert "ann" in str(caught.value)


@pytest.mark.postgres
def test_a_server_that_dropped_every_connection(postgres_server: str, open_engine: Callable[..., Engine]) -> None:
    """After its sessions were ended, as by a restart, the next transaction connects again by itself."""
    engine, other = open_engine(postgres_server), open_engine(postgres_server)
    with other.connect() as connection:
        connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
        )
    with reading(engine) as connection:
        assert connection.scalar(sa.text("SELECT 1")) == 1


def test_somebody_elses_sqlite_does_not_pull_the_wal_away(tmp_path: Path) -> None:
    """Reading in the daemon's process, then another process opens and closes the file: the daemon's locks still hold.

    Closing any descriptor of a file drops all locks that a process has on it, so nothing may open it but SQLite.
    """
    url = f"sqlite:///{tmp_path / 'x.sqlite3'}"
    writer = open_database(url)
    with writing(writer) as connection:
        connection.execute(sa.text("CREATE TABLE t (a INTEGER)"))
    for number in range(3):
        with writing(writer) as connection:
            connection.execute(sa.text("INSERT INTO t VALUES (1)"))
        reader = open_database(url, readonly=True)
        with reading(reader) as connection:
            assert connection.scalar(sa.text("SELECT COUNT(*) FROM t")) == number + 1
        reader.dispose()
        look = f"import sqlite3; print(sqlite3.connect({str(tmp_path / 'x.sqlite3')!r}).execute('SELECT 1').fetchone())"
        subprocess.run([sys.executable, "-c", look], check=True, timeout=60)
        assert (tmp_path / "x.sqlite3-wal").exists(), "the other process believed that nobody else was there"
    writer.dispose()
