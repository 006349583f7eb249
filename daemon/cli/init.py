"""`dreamd init`: configuration file, state directory, database, base checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from daemon.cli.options import ConfigFile, Overrides, RunName, StateDir, flags
from daemon.cli.output import print_pairs
from daemon.cli.session import open_session
from daemon.cli.template import render_template
from daemon.config import Config, Loaded, load_config
from daemon.config.load import CONFIG_VARIABLE, DEFAULT_FILE
from daemon.domain.errors import DreamdError, PermissionDeniedError, RestoredBackupError
from daemon.service.state_dir import prepare_state_dir

_WRITTEN = ("run.name", "run.state_dir", "model.path")
"""What the template writes out; every other key has its default there."""


def register(app: typer.Typer) -> None:
    app.command("init")(init)


def init(
    small_model: Annotated[
        bool, typer.Option("--small-model", help="Build the small default model's folder at model.path first.")
    ] = False,
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
) -> None:
    """Create what a run needs; what exists already stays as it is."""
    given = flags(set_, state_dir, run)
    target = config or Path(os.environ.get(CONFIG_VARIABLE) or DEFAULT_FILE)
    written = not target.exists()
    loaded = _write_config(target, given) if written else load_config(target, environ=os.environ, flags=given)
    try:
        with open_session(loaded, pretty=True) as session:
            session.notifier.status("starting: loading libraries")
            from daemon import app

            report = app.init_run(loaded, session.observer, small_model=small_model)
    except RestoredBackupError:
        raise  # all is made, and the way out needs the settings
    except DreamdError:
        if written:
            target.unlink(missing_ok=True)  # or the next try, with what was wrong put right, would keep it
        raise
    print_pairs(
        {
            "configuration": f"{target} ({'written' if written else 'kept'})",
            "state directory": report.state_dir,
            "database": report.database_url,
            "base checkpoint": report.base_version,
            "run": f"{loaded.config.run.name} ({'created' if report.created else 'was there already'})",
        }
    )
    unwritten = [flag for flag in given if flag.partition("=")[0] not in _WRITTEN]
    if written and unwritten:
        typer.echo(f"for this command only, not in {target}: {', '.join(unwritten)}")
    typer.echo("next: dreamd run --cycles 3")


def _write_config(target: Path, given: list[str]) -> Loaded:
    """Write the template to `target` and load it; when the result cannot be used, leave nothing behind."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(render_template(_overridden(given)))
    except OSError as error:
        raise PermissionDeniedError(f"{target}: cannot be written: {error.strerror}; see --config") from None
    try:
        loaded = load_config(target, environ=os.environ, flags=given)
        prepare_state_dir(loaded.config.run.state_dir)
    except DreamdError:
        target.unlink()
        raise
    return loaded


def _overridden(given: list[str]) -> Config:
    """Defaults, environment and flags: what the new file is to say where it says anything."""
    environ = {name: value for name, value in os.environ.items() if name != CONFIG_VARIABLE}
    return load_config(Path(os.devnull), environ=environ, flags=given).config
