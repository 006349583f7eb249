"""`dreamd breaker status|ack`: may the daemon train, and an operator's word that it may."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from daemon.cli.history import open_run
from daemon.cli.options import AsJson, ConfigFile, Overrides, RunName, StateDir, load
from daemon.cli.output import echo, print_json, print_pairs, print_table
from daemon.cli.watching import breaker_line, breaker_next, moment
from daemon.domain.errors import UsageError

_COLUMNS = {
    "cycle": "after cycle",
    "state": "state",
    "num_openings": "openings",
    "until": "until",
    "acknowledged": "acknowledged",
    "changed_at": "changed at",
    "reason": "reason",
}
_TIMES = frozenset({"until", "changed_at"})


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="The circuit breaker: stops training after several rollbacks.", no_args_is_help=True)
    group.command("status")(status)
    group.command("ack")(acknowledge)
    app.add_typer(group, name="breaker")


def status(
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="The newest N changes.")] = 10,
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """Whether the daemon may train, why not, and the newest changes."""
    loaded = load(config, set_, state_dir, run)
    with open_run(loaded) as (queries, engine, name):
        found = queries.breaker(engine, name, limit)
    if as_json:
        print_json(found)
        return
    now = found["now"]
    print_pairs(
        {
            "breaker": breaker_line(now),
            "openings": f"{now['num_openings']} since it was closed last",
            "next": breaker_next(now, loaded.config.breaker.lr_factor),
        }
    )
    if found["changes"]:
        echo("")
        print_table(list(_COLUMNS.values()), map(_row, found["changes"]))


def _row(change: Mapping[str, Any]) -> list[Any]:
    return [moment(change[key]) if key in _TIMES else change[key] for key in _COLUMNS]


def acknowledge(
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="What was found or changed; it is recorded.")],
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """Have an open breaker try one cycle now, gently, instead of waiting for its back-off to end."""
    from daemon.storage import migrate
    from daemon.storage.database import open_database
    from daemon.storage.watching import acknowledge_breaker

    if not reason.strip():
        raise UsageError("--reason is empty; say what was found or changed, for whoever reads the run later")
    loaded = load(config, set_, state_dir, run)
    engine = open_database(loaded.config.run.url)
    try:
        migrate.check_schema(engine)
        now = acknowledge_breaker(engine, loaded.config.run.name, reason.strip())
    finally:
        engine.dispose()
    if as_json:
        print_json(now)
    else:
        echo(f"breaker {breaker_line(now)}")
        echo(f"next: {breaker_next(now, loaded.config.breaker.lr_factor)}")
