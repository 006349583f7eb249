"""`dreamd probes`: what is measured, when it was, what it costs, and how it stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from daemon.cli.history import open_run
from daemon.cli.options import AsJson, ConfigFile, Overrides, RunName, StateDir, load
from daemon.cli.output import echo, print_json, print_table

_COLUMNS = (
    *("probe", "cycle", "version", "why", "items", "seconds"),
    *("measured", "head now", "on A1", "on base", "suite", "skipped"),
)
_SHORT = 8
"""Characters of a suite's version that tell it from another at a glance."""
_MIXED = frozenset({"style"})
"""Probes whose items are different figures: a mean over them says nothing."""


def register(app: typer.Typer) -> None:
    app.command("probes")(probes)


def probes(
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="Newest measurements of each probe.")] = 1,
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """Held-out measurements: the newest of each probe, its cost, and its level on the head, on A1 and on the base."""
    loaded = load(config, set_, state_dir, run)
    with open_run(loaded) as (_, engine, name):
        from daemon.storage import probe_queries

        found = probe_queries.probes(engine, name, loaded.config.watchdog.baked_after, limit)
    if as_json:
        print_json(found)
    elif not found:
        echo("nothing is measured yet; `dreamd run --cycles 1` runs a cycle")
    else:
        print_table(_COLUMNS, map(_row, found))


def _row(measured: Mapping[str, Any]) -> list[Any]:
    suite = str(measured["suite_version"])[:_SHORT]
    mixed = measured["probe"] in _MIXED
    levels = [None if mixed else _level(measured.get(whose)) for whose in ("measured", "now", "baked", "base")]
    version = f"{measured['version']} (refused)" if measured["refused"] else measured["version"]
    first = (measured["probe"], measured["cycle"], version, measured["reason"], measured["num_items"])
    seconds = f"{measured['seconds']:.1f}"
    return [*first, seconds, *levels, suite, measured["skipped"]]


def _level(of: Mapping[str, Any] | None) -> str | None:
    """The share that passed, where something can pass; else the mean."""
    if of is None:
        return None
    if of["pass_rate"] is not None:
        return f"{100 * of['pass_rate']:.0f} %"
    return None if of["mean"] is None else f"{of['mean']:.4f}"
