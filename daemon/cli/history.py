"""Commands that read a run: `status`, `cycles`, `show`, `checkpoints`. They work while the daemon writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Annotated, Any

import typer

from daemon.cli.options import AsJson, ConfigFile, Overrides, RunName, StateDir, load
from daemon.cli.output import echo, print_json, print_pairs, print_table
from daemon.cli.summary import cycle_line, cycle_lines
from daemon.config import Loaded

_CYCLE_COLUMNS = {
    "cycle": "cycle",
    "outcome": "outcome",
    "num_scenarios": "scenarios",
    "num_passed": "passed",
    "num_judged": "judged",
    "num_pairs": "pairs",
    "loss": "loss",
    "held_out_nll": "NLL",
    "accept_rate": "accept",
    "push_back_rate": "push back",
    "reason": "reason",
}
_CHECKPOINT_COLUMNS = {
    "version": "version",
    "cycle": "cycle",
    "state": "state",
    "parent_version": "parent",
    "size_bytes": "bytes",
    "is_head": "head",
}


def register(app: typer.Typer) -> None:
    app.command("status")(status)
    app.command("cycles")(cycles)
    app.command("show")(show)
    app.command("checkpoints")(checkpoints)


@contextmanager
def open_run(loaded: Loaded) -> Iterator[tuple[ModuleType, Any, str]]:
    """The queries, a read-only engine whose schema is this program's, and the run's name."""
    from daemon.storage import migrate, queries
    from daemon.storage.database import open_database

    engine = open_database(loaded.config.run.url, readonly=True)
    try:
        migrate.check_schema(engine)
        yield queries, engine, loaded.config.run.name
    finally:
        engine.dispose()


def status(
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """Where the run stands."""
    with open_run(load(config, set_, state_dir, run)) as (queries, engine, name):
        found = queries.status(engine, name)
    print_json(found) if as_json else print_pairs(_status_pairs(found))


def cycles(
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="The newest N.")] = 20,
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """The newest cycles, one line each."""
    with open_run(load(config, set_, state_dir, run)) as (queries, engine, name):
        found = queries.cycles(engine, name, limit)
    if as_json:
        print_json(found)
    else:
        print_table(list(_CYCLE_COLUMNS.values()), ([row.get(key) for key in _CYCLE_COLUMNS] for row in found))


def show(
    cycle: Annotated[int, typer.Argument(metavar="CYCLE", min=1, help="The cycle's number.")],
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """Everything about one cycle."""
    with open_run(load(config, set_, state_dir, run)) as (queries, engine, name):
        found = queries.show_cycle(engine, name, cycle)
    if as_json:
        print_json(found)
        return
    for line in cycle_lines(found):
        echo(line)


def checkpoints(
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """Published checkpoints, base first; the head is marked."""
    with open_run(load(config, set_, state_dir, run)) as (queries, engine, name):
        found = queries.checkpoints(engine, name)
    if as_json:
        print_json(found)
    else:
        rows = ([row.get(key) for key in _CHECKPOINT_COLUMNS] for row in found)
        print_table(list(_CHECKPOINT_COLUMNS.values()), rows)


def _status_pairs(found: dict[str, Any]) -> dict[str, Any]:
    run, head, current = found["run"], found["head"], found["current"]
    last = found["last_cycles"][-1] if found["last_cycles"] else None
    pairs = {
        "run": f"{run['name']} (seed {run['seed']}, created {run['created_at']})",
        "model": run["model_path"],
        "head": None if head is None else f"{head['version']} ({head['state']})",
        "cycles": found["cycles_by_outcome"],
        "now": "no cycle is open" if current is None else f"cycle {current['number']}, {current['state']}",
        "last": None if last is None else cycle_line(last),
        "spent": found["claims_by_kind"],
    }
    if found["unverified_rollbacks"]:
        pairs["warning"] = f"{found['unverified_rollbacks']} rollbacks are not verified; the next start verifies them"
    return pairs
