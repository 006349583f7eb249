"""The command `dreamd`, put together from its groups."""

from __future__ import annotations

from typing import Annotated

import typer

from daemon import __version__
from daemon.cli import (
    breaker,
    checkpoints,
    config,
    database,
    doctor,
    governor,
    history,
    init,
    policy,
    probes,
    run,
    scenarios,
    watchdog,
)
from daemon.cli.output import make_console
from daemon.service import logs


def build() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        name="dreamd",
        help="Keeps teaching a language model, one small step at a time, and rolls back by itself when it gets worse.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,  # __main__ says what an exception means
        rich_markup_mode=None,
    )
    app.callback()(_root)
    groups = (init, run, history, checkpoints, probes, breaker, governor, watchdog, policy, scenarios, config, database)
    for group in (*groups, doctor):
        group.register(app)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dreamd {__version__}")
        raise typer.Exit


def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    # Commands that only read have no session: their warnings go to stderr, stdout is for what they print.
    console = make_console(stderr=True)
    output = logs.console_output(lambda line: console.out(line, highlight=False), color=console.is_terminal)
    logs.configure_logging(level="warning", run="", outputs=[output])
