"""`dreamd db upgrade|current`."""

from __future__ import annotations

import typer

from daemon.cli.options import AsJson, ConfigFile, Overrides, RunName, StateDir, load
from daemon.cli.output import print_json, print_pairs


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="The run database's schema.", no_args_is_help=True)
    group.command("upgrade")(upgrade)
    group.command("current")(current)
    app.add_typer(group, name="db")


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
