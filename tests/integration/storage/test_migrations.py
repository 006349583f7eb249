"""The migrations make exactly the tables that the code uses, on both databases, and refuse what they do not know."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from daemon.domain.errors import SchemaError
from daemon.storage import tables, views
from daemon.storage.database import reading, writing
from daemon.storage.migrate import SCHEMA_REVISION, alembic_config, check_schema, current, migrations_folder, upgrade


def test_the_revision_in_the_code_is_the_migrations_head() -> None:
    """`SCHEMA_REVISION` is Alembic's one head, and revisions are numbered upwards."""
    from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(alembic_config())
    assert script.get_heads() == [SCHEMA_REVISION]
    numbers = [revision.revision for revision in script.walk_revisions()][::-1]
    assert numbers == sorted(numbers) == [f"{index:04d}" for index in range(1, len(numbers) + 1)]


def test_revisions_import_nothing_of_the_package() -> None:
    """A migration must work on the tables of its own time, whatever the code says today."""
    for revision in (migrations_folder() / "versions").glob("*.py"):
        assert "daemon" not in revision.read_text().replace("from `daemon`", "")


def test_migrations_equal_the_tables(engine: Engine) -> None:
    """Alembic finds no difference of columns, types, keys or indexes between the migrated database and the code."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with engine.connect() as connection, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []


def test_migrations_make_the_same_constraints(
    engine: Engine, empty_database_url: str, database_kind: str, tmp_path: Any, open_engine: Callable[..., Engine]
) -> None:
    """CHECK constraints and foreign keys, which Alembic does not compare on every database, are equal too."""
    plain = empty_database_url
    if database_kind == "sqlite":
        plain = f"sqlite:///{tmp_path / 'plain.sqlite3'}"
    other = open_engine(plain)
    with other.begin() as connection:
        tables.metadata.create_all(connection)
    assert _constraints(engine) == _constraints(other)


def test_views_have_the_columns_the_code_reads(engine: Engine) -> None:
    """Both views exist with exactly the columns of `daemon.storage.views`."""
    inspector = sa.inspect(engine)
    assert set(inspector.get_view_names()) == {"cycle_summary", "lineage"}
    for view in views.views.tables.values():
        assert [column["name"] for column in inspector.get_columns(view.name)] == [column.name for column in view.c]


def test_an_upgrade_from_nothing_and_again(empty_database_url: str, open_engine: Callable[..., Engine]) -> None:
    """An empty database becomes current, a current one stays as it is, and both are then accepted."""
    engine = open_engine(empty_database_url)
    assert current(empty_database_url) is None
    with pytest.raises(SchemaError, match="no schema yet; run `dreamd db upgrade`") as caught:
        check_schema(engine)
    assert caught.value.exit_code == 78
    for _ in range(2):
        assert upgrade(empty_database_url) == SCHEMA_REVISION == current(empty_database_url)
        check_schema(engine)


@pytest.mark.parametrize("revision", ["0999", "abcdef012345"])
def test_a_newer_or_foreign_schema_is_refused(engine: Engine, database_url: str, revision: str) -> None:
    """Both revisions are named, the fix is a newer dreamd, and not even an upgrade touches the database."""
    with writing(engine) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
    for attempt in (lambda: check_schema(engine), lambda: upgrade(database_url)):
        with pytest.raises(
            SchemaError, match=f"schema {revision} is newer .*{SCHEMA_REVISION}; install a newer dreamd"
        ):
            attempt()
    assert current(database_url) == revision


def test_an_older_schema_is_refused_until_upgraded(empty_database_url: str, open_engine: Callable[..., Engine]) -> None:
    """A database at an earlier revision names the command that brings it up, and that command does."""
    from alembic import command

    engine = open_engine(empty_database_url)
    with writing(engine) as connection:
        command.upgrade(alembic_config(connection), "0001")
    with pytest.raises(SchemaError, match=r"schema 0001 is older than this program's .*run `dreamd db upgrade`"):
        check_schema(engine)
    upgrade(empty_database_url)
    check_schema(engine)


def test_a_migration_that_fails_leaves_nothing(empty_database_url: str, open_engine: Callable[..., Engine]) -> None:
    """When a later statement of an upgrade fails, the tables made before it are gone again."""
    engine = open_engine(empty_database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE lineage (in_the_way INTEGER)")
    with pytest.raises(Exception, match="lineage"):
        upgrade(empty_database_url)
    with reading(engine) as connection:
        assert sa.inspect(connection).get_table_names() == ["lineage"]


def _constraints(engine: Engine) -> dict[str, list[str]]:
    inspector = sa.inspect(engine)
    return {
        table: sorted(
            repr(sorted(found.items(), key=str))
            for found in (*inspector.get_check_constraints(table), *inspector.get_foreign_keys(table))
        )
        for table in tables.metadata.tables
    }
