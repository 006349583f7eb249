"""Commands that read a run: `status`, `cycles`, `show`. They work while the daemon writes."""

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
from daemon.domain.states import BreakerState

Record = dict[str, Any]

_ALL = 1_000_000
"""Changes of a breaker: all of them."""
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


def register(app: typer.Typer) -> None:
    app.command("status")(status)
    app.command("cycles")(cycles)
    app.command("show")(show)


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
    """What is recorded of a cycle; under "unmeasured" the probes that it left out, and "breaker_lr_factor".

    Raises:
        UsageError: there is no such run or cycle.
    """
    from daemon.storage import probe_queries

    found: Record = queries.show_cycle(engine, run_name, number)
    return found | {
        "unmeasured": probe_queries.unmeasured(engine, run_name, number),
        "breaker_lr_factor": _breaker_lr_factor(queries, engine, run_name, number),
    }


def status(
    config: ConfigFile = None,
    set_: Overrides = None,
    state_dir: StateDir = None,
    run: RunName = None,
    as_json: AsJson = False,
) -> None:
    """Where the run stands."""
    with open_run(load(config, set_, state_dir, run)) as (queries, engine, name):
        found = queries.status(engine, name) | {"adjusted": _newest_adjustments(queries, engine, name)}
    if as_json:
        print_json(found)
        return
    _warn(found["breaker"])
    changed = _newest_adjusted(found["adjusted"])
    print_pairs(_status_pairs(found) | ({"adjusted": changed} if changed else {}))


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
        changed = _newest_adjusted(_newest_adjustments(queries, engine, name))
    if as_json:
        print_json(found)
        return
    _warn(breaker)
    print_table(list(_CYCLE_COLUMNS.values()), ([row.get(key) for key in _CYCLE_COLUMNS] for row in found))
    if changed:
        echo(f"adjusted: {changed}")


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


def _newest_adjustments(queries: ModuleType, engine: Any, run_name: str) -> Record | None:
    """Number, adjustments and the breaker's part of the newest cycle; None before the first."""
    from daemon.storage.probe_queries import adjustments_in_force

    newest = adjustments_in_force(engine, run_name)
    if newest is None:
        return None
    return {
        "cycle": newest["number"],
        "adjustments": newest["adjustments"],
        "breaker_lr_factor": _breaker_lr_factor(queries, engine, run_name, newest["number"]),
    }


def _newest_adjusted(newest: Record | None) -> str:
    """What governor and breaker changed of the newest cycle; empty: nothing. The next one may differ."""
    changed = "" if newest is None else adjusted(newest["adjustments"], newest["breaker_lr_factor"])
    return f"{changed} in cycle {newest['cycle']}, the newest" if newest is not None and changed else ""


def _breaker_lr_factor(queries: ModuleType, engine: Any, run_name: str, number: int) -> float | None:
    """The breaker's part of a cycle's learning rate, as a factor; None: the cycle was not a trial of the breaker's."""
    from daemon.storage.probe_queries import settings_of_cycles

    changes = queries.breaker(engine, run_name, _ALL)["changes"]
    before = [change for change in changes if change["cycle"] < number]
    if not before or before[-1]["state"] != BreakerState.HALF_OPEN:
        return None
    settings = settings_of_cycles(engine, run_name, "breaker").get(number, {})
    return settings.get("lr_factor")
