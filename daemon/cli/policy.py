"""Commands that act on the policy: `rollback`; and `export`, short for `checkpoints export`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from daemon.cli.checkpoint_changes import export
from daemon.cli.options import ConfigFile, Overrides, RunName, StateDir, load
from daemon.cli.output import print_pairs
from daemon.cli.session import open_session
from daemon.domain.errors import UsageError


def register(app: typer.Typer) -> None:
    app.command("rollback")(rollback)
    app.command("export")(export)


def rollback(
    to_cycle: Annotated[
        int | None,
        typer.Option("--to", min=0, metavar="CYCLE", help="Back to that cycle's checkpoint; else the head's parent."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
) -> None:
    """Make an earlier checkpoint the head again, and verify it. The daemon must not be running."""
    loaded = load(config, set_, state_dir, run)
    target = "the head's parent" if to_cycle is None else f"cycle {to_cycle}"
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("rollback asks before it acts, and there is no terminal to ask on; add --yes")
        typer.confirm(f"Roll run {loaded.config.run.name!r} back to {target}?", abort=True)
    with open_session(loaded, pretty=True) as session:
        from daemon import app

        report = app.roll_back(loaded, session.observer, to_cycle=to_cycle)
    print_pairs(report)
