"""Bring a database to this program's schema, and refuse one that is not at it.

Alembic is imported only to upgrade: commands that read must start fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from daemon.domain.errors import SchemaError
from daemon.storage.backup import back_up_schema
from daemon.storage.database import open_database, reading, redacted, sqlite_path, writing

SCHEMA_REVISION = "0006"
"""The revision this program reads and writes: Alembic's head. Revisions are numbered, so order is plain."""

_UPGRADE_LOCK = 0x647265616D64  # "dreamd": two upgrades of one PostgreSQL server go one after the other


def migrations_folder() -> Path:
    """Beside the package in a checkout, inside it in an installed wheel.

    Raises:
        SchemaError: in neither place.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package.parent / "migrations", package / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise SchemaError(f"no migrations beside or in {package}; reinstall dreamd")


def upgrade(url: str) -> str:
    """Create or migrate the schema in one transaction; returns the revision it is at now.

    An SQLite file that has a schema is copied first: `NAME.schema-REVISION-TIME.bak` beside it, verified. Of a
    PostgreSQL database the operator makes a backup: `check_schema`, which refuses the older one, says how.

    Raises:
        SchemaError: the database is newer than this program; nothing changed.
        DatabaseError: unreachable, or a migration failed; nothing changed.
        DiskError: the copy could not be made; nothing changed.
    """
    from alembic import command

    engine = open_database(url)
    try:
        with writing(engine) as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
            found = _stored_revision(connection)
            if found is not None and _is_newer(found):
                raise _newer(engine, found)
            path = sqlite_path(engine.url)
            if path is not None and found is not None and found != SCHEMA_REVISION:
                back_up_schema(path, found)  # by the file's writer: nothing changes between the copy and the migration
            command.upgrade(alembic_config(connection), "head")
    finally:
        engine.dispose()
    return SCHEMA_REVISION


def current(url: str) -> str | None:
    """The database's revision; None when it has no schema yet."""
    engine = open_database(url, readonly=True)
    try:
        with reading(engine) as connection:
            return _stored_revision(connection)
    finally:
        engine.dispose()


def check_schema(engine: Engine) -> None:
    """Refuse a database that this program would misread.

    Raises:
        SchemaError: it has no schema, an older one, a newer one or an unknown one.
    """
    with reading(engine) as connection:
        found = _stored_revision(connection)
    if found == SCHEMA_REVISION:
        return
    if found is None:
        raise SchemaError(f"{redacted(engine.url)}: no schema yet; run `dreamd db upgrade`")
    if _is_newer(found):
        raise _newer(engine, found)
    raise SchemaError(
        f"{redacted(engine.url)}: schema {found} is older than this program's {SCHEMA_REVISION}; {_how(engine)}"
    )


def alembic_config(connection: Connection | None = None) -> Any:
    """Alembic's configuration, built here instead of in an alembic.ini."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _stored_revision(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def _how(engine: Engine) -> str:
    if engine.dialect.name == "sqlite":
        return "run `dreamd db upgrade`, which makes a backup first"
    name = engine.url.database
    return f"make a backup (`pg_dump -Fc -f {name}.dump {name}`), then run `dreamd db upgrade`"


def _is_newer(revision: str) -> bool:
    """Newer, or from another history: this program has no migration from it either way."""
    return not revision.isdigit() or revision > SCHEMA_REVISION


def _newer(engine: Engine, found: str) -> SchemaError:
    return SchemaError(
        f"{redacted(engine.url)}: schema {found} is newer than this program's {SCHEMA_REVISION}; install a newer dreamd"
    )
