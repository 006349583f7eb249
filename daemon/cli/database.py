"""`dreamd db upgrade|current|backup|adopt-journal|fetch-journal`, also under the name `dreamd database`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from daemon.cli.options import AsJson, ConfigFile, Overrides, RunName, StateDir, load, mirror_for
from daemon.cli.output import echo, print_json, print_pairs
from daemon.domain.errors import UsageError


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="The run database: its schema, copies of it.", no_args_is_help=True)
    group.command("upgrade")(upgrade)
    group.command("current")(current)
    group.command("backup")(backup)
    group.command("adopt-journal")(adopt_journal)
    group.command("fetch-journal")(fetch_journal)
    app.add_typer(group, name="database")
    app.add_typer(group, name="db", help="Short for `dreamd database`.")


def upgrade(config: ConfigFile = None, set_: Overrides = None, state_dir: StateDir = None, run: RunName = None) -> None:
    """Create the schema or migrate it to this program's, in one transaction."""
    from daemon.storage import migrate

    typer.echo(f"schema {migrate.upgrade(load(config, set_, state_dir, run).config.run.url)}")


def current(
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """The schema the database has, and the one this program needs."""
    from daemon.storage import migrate
    from daemon.storage.database import redacted

    url = load(config, set_, state_dir, run).config.run.url
    found = {"database": redacted(url), "current": migrate.current(url), "needed": migrate.SCHEMA_REVISION}
    print_json(found) if as_json else print_pairs(found)


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Made by the backup; must not be there yet.")],
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
) -> None:
    """Copy an SQLite database, verified; the daemon may run.

    Example: dreamd database backup ~/dreamd-monday.sqlite3
    """
    from daemon.storage.backup import back_up
    from daemon.storage.database import open_database, redacted, sqlite_path

    url = load(config, set_, state_dir, run).config.run.url
    database = sqlite_path(url)
    if database is None:
        raise UsageError(f"{redacted(url)}: PostgreSQL has its own: pg_dump -Fc -f {file} DATABASE")
    if file.exists() or not file.parent.is_dir():
        raise UsageError(f"{file}: {'is there already' if file.exists() else 'its directory is not there'}")
    open_database(url, readonly=True).dispose()  # no such file, or no database: said before anything is made
    back_up(database, file)
    echo(f"{file}: {file.stat().st_size} bytes, a whole copy of {database}")


def adopt_journal(
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a restored, older backup.

    Everything that the claims journal beside the checkpoints knows and the database does not is recorded as spent, so
    that nothing is trained twice, and cycle numbers go on above the journal's last. The daemon must not be running.

    Example: dreamd database adopt-journal
    """
    from daemon.storage import journal, migrate
    from daemon.storage.database import open_database
    from daemon.storage.lock import RunLock

    settings = load(config, set_, state_dir, run).config.run
    file = settings.claims_log
    if not file.is_file():
        raise UsageError(f"{file}: no such file; there is no claims journal to adopt")
    engine = open_database(settings.url)
    try:
        migrate.check_schema(engine)
        with RunLock(engine, settings.name):
            adopted = journal.adopt_journal(engine, settings.name, file)
    finally:
        engine.dispose()
    if as_json:
        print_json({"journal": str(file), "claims": adopted})
    else:
        echo(f"{adopted} claims that only {file} knew are spent now" if adopted else "the database knew all claims")


def fetch_journal(
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """Get the claims journal back from the mirror, where the one here is lost, damaged or older.

    Claims that only the one here has stay in it.

    With a database that is older than the journal the next start says how to go on. The daemon must not be running.

    Example: dreamd database fetch-journal
    """
    from daemon.storage.database import open_database, sqlite_path
    from daemon.storage.lock import RunLock

    loaded = load(config, set_, state_dir, run)
    settings, mirror = loaded.config, mirror_for(loaded)
    file, database = settings.run.claims_log, sqlite_path(settings.run.url)
    with contextlib.ExitStack() as stack:
        if database is None or database.exists():  # without a database no daemon can run
            engine = open_database(settings.run.url)
            stack.callback(engine.dispose)
            stack.enter_context(RunLock(engine, settings.run.name))
        fetched = mirror.fetch_journal(file, settings.run.name)
    if as_json:
        print_json({"journal": str(file), "claims": fetched.num_claims, "damaged_parts": fetched.num_damaged})
        return
    added = fetched.num_claims
    echo(f"{added} claims came back into {file}" if added else f"{file} has every claim that {mirror.url} has")
    if fetched.num_damaged:
        echo(f"{fetched.num_damaged} parts of it are damaged there, and may have lacked claims")
