"""Before an SQLite file is migrated a copy of it lies beside it, whole, private and verified."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pysqlite3 import dbapi2
from sqlalchemy import Engine

from daemon.domain.errors import DatabaseError, DiskError, SchemaError
from daemon.storage import backup, migrate
from daemon.storage.backup import back_up
from daemon.storage.database import open_database, writing
from daemon.storage.migrate import SCHEMA_REVISION, alembic_config, check_schema, current, upgrade

_AT = "'2024-05-01 00:00:00'"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file at schema 0005 with a run in it."""
    from alembic import command

    path = tmp_path / "dreamd.sqlite3"
    engine = open_database(f"sqlite:///{path}")
    with writing(engine) as connection:
        command.upgrade(alembic_config(connection), "0005")
        connection.exec_driver_sql(
            "INSERT INTO runs (name, seed, created_at, dreamd_version, model_path, config, epoch) "
            f"VALUES ('old', 7, {_AT}, '0.1', 'm', '{{}}', 1)"
        )
    engine.dispose()
    path.chmod(0o600)
    return path


def dump(path: Path) -> list[str]:
    """Every definition and every row."""
    with closing(dbapi2.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        found = [repr(row) for row in connection.execute("SELECT type, name, sql FROM sqlite_master")]
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            found += [f"{table} {row!r}" for row in connection.execute(f'SELECT * FROM "{table}"')]
    return sorted(found)


def copies(path: Path) -> list[Path]:
    return sorted(found for found in path.parent.iterdir() if found.name.startswith(f"{path.name}.schema-"))


def test_a_file_is_copied_before_it_is_migrated(old: Path) -> None:
    """The copy holds what the file held, is one file that any program opens, and as private as the file."""
    before = dump(old)
    assert upgrade(f"sqlite:///{old}") == SCHEMA_REVISION
    (copy,) = copies(old)
    made_at = datetime.strptime(copy.name, f"{old.name}.schema-0005-%Y%m%dT%H%M%SZ.bak").replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - made_at).days) <= 1
    assert dump(copy) == before
    assert copy.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_nothing_is_copied_that_is_not_migrated(old: Path, tmp_path: Path) -> None:
    """A new database and one that is current already leave no copy."""
    upgrade(f"sqlite:///{old}")
    upgrade(f"sqlite:///{old}")
    assert len(copies(old)) == 1
    upgrade(f"sqlite:///{tmp_path / 'new.sqlite3'}")
    assert copies(tmp_path / "new.sqlite3") == []


def test_a_failing_migration_leaves_copy_and_file(old: Path) -> None:
    """Something is in a table's way: the file is at its old schema with all of its rows, and so is the copy."""
    with closing(dbapi2.connect(str(old))) as connection:
        connection.execute("CREATE TABLE rehearsals (in_the_way INTEGER)")
        connection.commit()
    before = dump(old)
    with pytest.raises(DatabaseError, match="rehearsals"):
        upgrade(f"sqlite:///{old}")
    assert current(f"sqlite:///{old}") == "0005"
    assert dump(old) == before
    assert [dump(copy) for copy in copies(old)] == [before]


def test_without_a_copy_nothing_is_migrated(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the copy cannot be made, or is damaged, the file stays as it is and nothing half is left beside it."""
    before = dump(old)

    def full(dbapi2_: object, database: Path, target: Path) -> None:
        target.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    def damaged(dbapi2_: object, database: Path, target: Path) -> None:
        raise dbapi2.DatabaseError("the copy is damaged (row 7 missing from index)")

    for failing, said in ((full, "No space left on device"), (damaged, "the copy is damaged")):
        monkeypatch.setattr(backup, "_copy", failing)
        with pytest.raises(DiskError, match=f"{said}.*nothing was changed") as caught:
            upgrade(f"sqlite:///{old}")
        assert caught.value.exit_code == 74
        assert current(f"sqlite:///{old}") == "0005"
        assert dump(old) == before
        assert copies(old) == []


def test_the_newest_three_copies_stay(old: Path) -> None:
    """Copies are kept by the time in their names, across schemas; files of other databases are left alone."""
    times = ["20240101T000000Z", "20240301T000000Z", "20240201T000000Z"]
    for schema, time in zip(("0004", "0002", "0003"), times, strict=True):
        old.with_name(f"{old.name}.schema-{schema}-{time}.bak").write_text("older")
    other = old.with_name(f"other-{old.name}.schema-0001-20200101T000000Z.bak")
    other.write_text("another database's")
    upgrade(f"sqlite:///{old}")
    assert [copy.name.split("-")[1] for copy in copies(old)] == ["0002", "0003", "0005"]
    assert other.exists()


def test_a_copy_is_of_one_moment(old: Path, open_engine: Callable[..., Engine]) -> None:
    """What another connection has not committed is not in it, what it has committed is, though still in the WAL."""
    engine, target = open_engine(f"sqlite:///{old}"), old.with_name("copy")
    with writing(engine) as connection:
        connection.exec_driver_sql("UPDATE runs SET seed = 8")
    with writing(engine) as connection:
        connection.exec_driver_sql("UPDATE runs SET seed = 9")
        back_up(old, target)
    with closing(sqlite3.connect(target)) as copied:
        assert copied.execute("SELECT seed FROM runs").fetchall() == [(8,)]
    with pytest.raises(DiskError, match="it is there already"):
        back_up(old, target)
    found = {path.name for path in old.parent.iterdir()}
    assert found == {"copy", "dreamd.sqlite3", "dreamd.sqlite3-shm", "dreamd.sqlite3-wal"}


def test_who_is_older_is_told_how_to_go_on(old: Path, open_engine: Callable[..., Engine]) -> None:
    """On SQLite the upgrade makes its backup itself; on PostgreSQL the message says how to make one."""
    with pytest.raises(SchemaError, match="run `dreamd db upgrade`, which makes a backup first"):
        check_schema(open_engine(f"sqlite:///{old}"))


@pytest.mark.postgres
def test_postgresql_is_backed_up_by_the_operator(
    postgres_server: str, open_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal of an older schema names the command that makes a backup."""
    monkeypatch.setattr(migrate, "_stored_revision", lambda connection: "0005")
    with pytest.raises(SchemaError, match=r"make a backup \(`pg_dump -Fc -f postgres.dump postgres`\), then run"):
        check_schema(open_engine(postgres_server))
