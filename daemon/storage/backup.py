"""Consistent copies of an SQLite database, also while somebody writes to it: through SQLite's own backup API."""

from __future__ import annotations

import os
from contextlib import closing, suppress
from datetime import UTC, datetime
from errno import EEXIST
from pathlib import Path
from stat import S_IMODE
from typing import Any
from urllib.parse import quote

from daemon.domain import disk
from daemon.domain.errors import DiskError

KEPT = 3
"""Copies from before a migration that stay; older ones are deleted."""


def back_up(database: Path, target: Path) -> None:
    """Copy a database to `target`, which is whole and verified or not there; nothing is replaced.

    Raises:
        DiskError: it could not be written, or the copy is damaged; nothing is left of it.
    """
    from pysqlite3 import dbapi2

    temporary = target.with_name(f"{target.name}.tmp")
    try:
        # Made with the database's own mode: a copy must not be readable by more people.
        mode = S_IMODE(database.stat().st_mode)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode))
        _copy(dbapi2, database, temporary)
        disk.fsync(temporary)
        if target.exists():
            raise FileExistsError(EEXIST, "it is there already")
        temporary.rename(target)
        disk.fsync(target.parent)
    except (OSError, dbapi2.Error) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise DiskError(
            f"{target}: the backup failed: {said}; nothing was changed: make room, or see to the disk"
        ) from error
    finally:
        for leftover in (
            temporary,
            temporary.with_name(f"{temporary.name}-wal"),
            temporary.with_name(f"{temporary.name}-shm"),
        ):
            with suppress(FileNotFoundError):
                leftover.unlink()


def back_up_schema(database: Path, revision: str) -> Path:
    """A copy beside a database that is about to be migrated; only the newest `KEPT` such copies stay.

    Raises:
        DiskError: it could not be made.
    """
    at = datetime.now(UTC)
    target = database.with_name(f"{database.name}.schema-{revision}-{at:%Y%m%dT%H%M%SZ}.bak")
    if not target.exists():  # twice within a second: nothing was written in between that a migration did not undo
        back_up(database, target)
    copies = sorted(database.parent.glob(f"{_literal(database.name)}.schema-*.bak"), key=_made_at)
    for old in copies[:-KEPT]:
        old.unlink(missing_ok=True)
    return target


def _copy(dbapi2: Any, database: Path, target: Path) -> None:
    source_uri = f"file:{quote(str(database.absolute()))}?mode=ro"
    with closing(dbapi2.connect(source_uri, uri=True)) as source, closing(dbapi2.connect(str(target))) as copy:
        source.backup(copy)
        # One file that needs no other beside it.
        copy.execute("PRAGMA journal_mode = DELETE").fetchone()
        found = copy.execute("PRAGMA integrity_check").fetchone()[0]
        if found != "ok":
            raise dbapi2.DatabaseError(f"the copy is damaged ({found})")


def _made_at(path: Path) -> str:
    return path.name.removesuffix(".bak").rsplit("-", 1)[-1]


def _literal(name: str) -> str:
    """`name` for a glob pattern that it alone matches."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
