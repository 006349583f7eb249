"""`dreamd governor`: what dreamd changed of its own settings, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from daemon.cli.history import open_run
from daemon.cli.options import AsJson, ConfigFile, Overrides, RunName, StateDir, load
from daemon.cli.output import echo, print_json, print_table
from daemon.cli.watching import change_of, effect_of, until_of


def register(app: typer.Typer) -> None:
    app.command("governor")(governor)


def governor(
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="The newest N.")] = 20,
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """What the governor decided, newest last."""
    loaded = load(config, set_, state_dir, run)
    with open_run(loaded) as (queries, engine, name):
        found = queries.governor(engine, name, limit)
    if as_json:
        print_json(found)
    elif not found:
        echo(f'no decisions (governor.mode = "{loaded.config.governor.mode}")')
    else:
        columns = ("cycle", "rule", "change", "until", "effect", "reason")
        print_table(
            columns,
            ([d["cycle"], d["rule"], change_of(d), until_of(d), effect_of(d), d["reason"]] for d in found),
        )
