"""`dreamd run`: the service loop, or a number of cycles of it."""

from __future__ import annotations

import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from daemon.cli.history import everything_of, open_run
from daemon.cli.options import ConfigFile, LogMode, Overrides, RunName, StateDir, load
from daemon.cli.output import make_console, print_pairs, printable
from daemon.cli.session import open_session
from daemon.cli.summary import cycle_lines
from daemon.cli.watching import stays_open
from daemon.config import Loaded
from daemon.config.load import DEFAULT_FILE
from daemon.domain.errors import BreakerOpenError, PermissionDeniedError, StopRequested
from daemon.service.logs import log_path
from daemon.service.state_dir import prepare_state_dir


def register(app: typer.Typer) -> None:
    app.command("run")(run_cycles)


def run_cycles(
    cycles: Annotated[
        int | None, typer.Option("--cycles", min=1, metavar="N", help="Stop after N cycles; without it, run for ever.")
    ] = None,
    log: Annotated[
        LogMode, typer.Option("--log", help="pretty: progress and summaries; json: JSON lines; auto: by terminal.")
    ] = LogMode.AUTO,
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
) -> None:
    """Run dream cycles; SIGTERM or Ctrl-C ends it cleanly, a second Ctrl-C at once."""
    loaded = load(config, set_, state_dir, run)
    pretty = log is LogMode.PRETTY or (log is LogMode.AUTO and sys.stdout.isatty())

    _look_before(loaded, limited=cycles is not None)

    def summarise(number: int) -> None:
        with open_run(loaded) as (queries, engine, name):
            console = make_console()
            for line in cycle_lines(everything_of(queries, engine, name, number)):
                console.print(printable(line), markup=False)

    with open_session(loaded, pretty=pretty, on_cycle_finished=summarise if pretty else None) as session:
        session.notifier.status("starting: loading libraries")
        if pretty:
            typer.echo("loading libraries ...", err=True)
        try:
            from daemon import app

            finished = app.serve(loaded, session.observer, session.stop, cycles=cycles, notifier=session.notifier)
        except StopRequested:
            finished = None
    if pretty:
        _closing_words(loaded, finished, session.stop.reason)


def _look_before(loaded: Loaded, *, limited: bool) -> None:
    """Refuse what can be refused before anything is loaded, and before anything is made.

    Args:
        limited: a number of cycles is asked for; without it an open breaker is waited for.

    Raises:
        BreakerOpenError: `limited`, and the breaker stays open for now.
        UsageError: there is no such database or run.
        SchemaError: the database is not at this program's schema.
        PermissionDeniedError: the state directory is not writable, or a directory above it may not be entered.
    """
    if _exists(loaded.config.run.state_dir):
        prepare_state_dir(loaded.config.run.state_dir)
    with open_run(loaded) as (queries, engine, name):
        breaker = queries.breaker(engine, name, 1)["now"]
    if limited and stays_open(breaker, datetime.now(UTC)):
        # The breaker's own words end with the way out.
        raise BreakerOpenError(f"the circuit breaker is open, nothing is trained: {breaker['reason']}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError as error:
        raise PermissionDeniedError(
            f"{path}: this user may not enter a directory above it ({error.strerror}); let the user pass through "
            "them, or choose another with --state-dir or run.state_dir"
        ) from None


def _closing_words(loaded: Loaded, finished: int | None, stopped_by: str | None) -> None:
    run, logging = loaded.config.run, loaded.config.logging
    with open_run(loaded) as (queries, engine, name):
        found = queries.status(engine, name)
    typer.echo("")
    if stopped_by is not None:
        typer.echo(f"stopped by {stopped_by}; start it again and it goes on from the head")
    elif finished is not None:
        typer.echo(f"{finished} cycle{'' if finished == 1 else 's'} finished")
    print_pairs(
        {
            "database": _database(loaded),
            "head checkpoint": run.state_dir / "checkpoints" / found["head"]["version"],
            "log": log_path(run.state_dir) if logging.file else "off (logging.file = false)",
        }
    )
    typer.echo("try next:")
    number = found["last_cycles"][-1]["cycle"] if found["last_cycles"] else 1
    for command in ("status", f"show {number}", "export head exported-model"):
        typer.echo(f"  {_invoked_as()} {command}{_same_run(loaded)}")


def _invoked_as() -> str:
    """`dreamd`, or the path it was started by when that is not on PATH."""
    return "dreamd" if shutil.which("dreamd") else sys.argv[0]


def _same_run(loaded: Loaded) -> str:
    """The options that lead another command to this run: those that this one was given."""
    run = loaded.config.run
    options = "" if loaded.file in (None, DEFAULT_FILE) else f" --config {loaded.file}"
    if loaded.source("run.state_dir") == "--set":
        options += f" --state-dir {run.state_dir}"
    return options + (f" --run {run.name}" if loaded.source("run.name") == "--set" else "")


def _database(loaded: Loaded) -> str:
    from daemon.storage.database import redacted, sqlite_path

    url = loaded.config.run.url
    return str(sqlite_path(url) or redacted(url))
