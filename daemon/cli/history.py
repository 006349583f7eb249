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
from daemon.cli.watching import adjusted, warning_of
from daemon.config import Loaded

Record = dict[str, Any]

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


def everything_of(queries: ModuleType, engine: Any, run_name: str, number: int) -> Record:
    """What is recorded of a cycle, and under "unmeasured" the probes that it left out.

    Raises:
        UsageError: there is no such run or cycle.
    """
    from daemon.storage import probe_queries

    found: Record = queries.show_cycle(engine, run_name, number)
    return found | {"unmeasured": probe_queries.unmeasured(engine, run_name, number)}


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
        changed = _in_force(engine, name)
    if as_json:
        print_json(found)
        return
    _warn(found["breaker"])
    print_pairs(_status_pairs(found) | ({"in force": changed} if changed else {}))


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
        breaker = queries.breaker(engine, name, 1)["now"]
        changed = _in_force(engine, name)
    if as_json:
        print_json(found)
        return
    _warn(breaker)
    print_table(list(_CYCLE_COLUMNS.values()), ([row.get(key) for key in _CYCLE_COLUMNS] for row in found))
    if changed:
        echo(f"in force: {changed}")


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
        found = everything_of(queries, engine, name, cycle)
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


def _status_pairs(found: Record) -> Record:
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


def _warn(breaker: Record) -> None:
    """What must not be overlooked, at the top."""
    warning = warning_of(breaker)
    if warning is not None:
        echo(warning)


def _in_force(engine: Any, run_name: str) -> str:
    """What governor and breaker changed of the newest cycle; empty: nothing."""
    from daemon.storage.probe_queries import adjustments_in_force

    newest = adjustments_in_force(engine, run_name)
    changed = "" if newest is None else adjusted(newest["adjustments"])
    return f"{changed} (cycle {newest['number']})" if newest is not None and changed else ""
