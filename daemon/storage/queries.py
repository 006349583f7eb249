"""What the command line reads: plain dicts and lists, ready for JSON. Nothing here writes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, RowMapping, Select, Table

from daemon.domain.errors import UsageError
from daemon.domain.states import CheckpointState, CompletionKind, CycleState
from daemon.storage import tables, views, watching
from daemon.storage.database import reading
from daemon.storage.kinds import PROBE_STAGES, MirrorState
from daemon.storage.probe_queries import common_means
from daemon.storage.runs import find_run
from daemon.storage.watching_rows import breaker_values

Record = dict[str, Any]


def status(engine: Engine, run_name: str, *, num_last: int = 5) -> Record:
    """The run, its head, its cycles by outcome, what runs now, the last cycles, and how much is spent.

    Raises:
        UsageError: there is no such run.
    """
    cycles, claims, rollbacks = tables.cycles, tables.claims, tables.rollbacks
    with reading(engine) as connection:
        run_id = find_run(connection, run_name).id
        unverified = sa.select(sa.func.count()).where(rollbacks.c.run_id == run_id, rollbacks.c.verified_at.is_(None))
        unfinished = _select(cycles).where(cycles.c.run_id == run_id, cycles.c.state != CycleState.FINISHED)
        current = _records(connection, unfinished.order_by(cycles.c.number))
        return {
            "run": _records(connection, _select(tables.runs).where(tables.runs.c.id == run_id))[0],
            "head": _head(connection, run_id),
            "cycles_by_outcome": _counts(connection, cycles.c.outcome, run_id),
            "claims_by_kind": _counts(connection, claims.c.kind, run_id),
            "unverified_rollbacks": connection.scalar(unverified),
            "current": current[-1] if current else None,
            "breaker": _breaker(connection, run_id),
            "last_cycles": _last_cycles(connection, run_name, num_last),
        }


def cycles(engine: Engine, run_name: str, limit: int = 20) -> list[Record]:
    """The newest `limit` rows of `cycle_summary`, oldest of them first.

    Raises:
        UsageError: there is no such run.
    """
    with reading(engine) as connection:
        find_run(connection, run_name)
        return _last_cycles(connection, run_name, limit)


def show_cycle(engine: Engine, run_name: str, number: int) -> Record:
    """Everything recorded about one cycle that a person may want to see.

    Raises:
        UsageError: there is no such run or cycle; says which there are.
    """
    with reading(engine) as connection:
        run_id = find_run(connection, run_name).id
        cycle = _cycle(connection, run_id, number)

        def of_cycle(table: Table, *order: str) -> list[Record]:
            of = _select(table).where(table.c.run_id == run_id, table.c.cycle == number)
            return _records(connection, of.order_by(*(table.c[name] for name in order)))

        summary = sa.select(views.cycle_summary).where(
            views.cycle_summary.c.run == run_name, views.cycle_summary.c.cycle == number
        )
        versions = [version for version in (cycle["candidate_version"], cycle["parent_version"]) if version]
        means = common_means(connection, run_id, versions)
        return {
            "cycle": cycle,
            "summary": _records(connection, summary)[0],
            "scenarios": _scenarios(connection, run_id, number),
            "refusals": of_cycle(tables.refusals, "id"),
            "source_reads": of_cycle(tables.source_reads, "name"),
            "diversity": _first(of_cycle(tables.batch_diversity)),
            "examples": of_cycle(tables.examples, "position"),
            "step": _first(of_cycle(tables.steps)),
            "lr_change": _first(of_cycle(tables.lr_changes)),
            "adjustments": cycle["adjustments"],
            "governor": of_cycle(tables.governor_decisions, "id"),
            "resting": watching.resting(connection, run_id, number),
            "probe_runs": of_cycle(tables.probe_runs, "id"),
            "probes": _probes(means, cycle["candidate_version"]),
            "probes_parent": _probes(means, cycle["parent_version"]),
            "engine_checks": of_cycle(tables.engine_checks, "id"),
            "verdict": _first(of_cycle(tables.verdicts)),
            "rollback": _first(of_cycle(tables.rollbacks, "id")),
            "events": of_cycle(tables.events, "id"),
        }


def checkpoints(engine: Engine, run_name: str) -> list[Record]:
    """Every checkpoint, base first, with `is_head` and its `depth` in the head's lineage (None: not in it).

    Also `pinned`, and `mirrored`: whether the mirror has it.

    Raises:
        UsageError: there is no such run.
    """
    table, lineage = tables.checkpoints, views.lineage
    with reading(engine) as connection:
        run = find_run(connection, run_name)
        found = connection.execute(sa.select(lineage.c.version, lineage.c.depth).where(lineage.c.run == run_name))
        depths: dict[str, int] = {row.version: row.depth for row in found}
        order = (sa.func.coalesce(table.c.cycle, 0), table.c.version)
        records = _records(connection, _select(table).where(table.c.run_id == run.id).order_by(*order))
        mirrored = _mirrored(connection, run.id)
    return [
        record
        | {
            "is_head": record["version"] == run.head_version,
            "depth": depths.get(record["version"]),
            "pinned": record["pinned_at"] is not None,
            "mirrored": record["version"] in mirrored,
        }
        for record in records
    ]


def breaker(engine: Engine, run_name: str, limit: int = 20) -> Record:
    """The breaker's state `now`, and its newest `changes`, oldest of them first.

    Raises:
        UsageError: there is no such run.
    """
    with reading(engine) as connection:
        run_id = find_run(connection, run_name).id
        return {
            "now": _breaker(connection, run_id),
            "changes": _newest(connection, tables.breaker_changes, run_id, limit),
        }


def governor(engine: Engine, run_name: str, limit: int = 50) -> list[Record]:
    """The governor's newest decisions, oldest of them first.

    Raises:
        UsageError: there is no such run.
    """
    with reading(engine) as connection:
        return _newest(connection, tables.governor_decisions, find_run(connection, run_name).id, limit)


def probe_share(engine: Engine, run_name: str, limit: int = 20) -> list[Record]:
    """What probes took of each of the newest cycles whose seconds are known, oldest of them first.

    `probe_seconds` of `seconds`, their `share`, and the cycle's outcome.

    Raises:
        UsageError: there is no such run.
    """
    table = tables.cycles
    with reading(engine) as connection:
        run_id = find_run(connection, run_name).id
        finished = _select(table).where(table.c.run_id == run_id, table.c.state == CycleState.FINISHED)
        found = _records(connection, finished.order_by(table.c.number.desc()).limit(limit))
    return [_share(record) for record in reversed(found) if sum(record["seconds"].values())]


def version_of_cycle(engine: Engine, run_name: str, number: int) -> str:
    """The checkpoint that a cycle made; cycle 0 is the base.

    Raises:
        UsageError: there is no such run or cycle, or it made no checkpoint, or its files are gone.
    """
    table = tables.checkpoints
    with reading(engine) as connection:
        run_id = find_run(connection, run_name).id
        if number != 0:
            cycle = _cycle(connection, run_id, number)
        made = table.c.cycle.is_(None) if number == 0 else table.c.cycle == number
        row = connection.execute(sa.select(table).where(table.c.run_id == run_id, made)).first()
    if row is None:
        what = f"cycle {number} ended {cycle['outcome'] or 'nowhere yet'}" if number else "the base is not registered"
        raise UsageError(f"{what}: there is no checkpoint of it; `dreamd checkpoints` lists those there are")
    if row.state == CheckpointState.PRUNED:
        raise UsageError(
            f"checkpoint {row.version} was pruned: its files are gone; `dreamd checkpoints` lists the rest"
        )
    return str(row.version)


def _cycle(connection: Connection, run_id: int, number: int) -> Record:
    table = tables.cycles
    found = _records(connection, _select(table).where(table.c.run_id == run_id, table.c.number == number))
    if not found:
        last = connection.scalar(sa.select(sa.func.max(table.c.number)).where(table.c.run_id == run_id))
        hint = f"cycles go from 1 to {last}" if last else "no cycle has run yet; `dreamd run --cycles 1` runs one"
        raise UsageError(f"no cycle {number}: {hint}")
    return found[0]


def _breaker(connection: Connection, run_id: int) -> Record:
    """The newest row of `breaker_changes`; what it would hold for a breaker that never changed."""
    newest = _newest(connection, tables.breaker_changes, run_id, 1)
    never: Record = {"id": None, **breaker_values(watching.NEVER_CHANGED), "changed_at": None}
    return newest[0] if newest else never


def _share(cycle: Record) -> Record:
    seconds = float(sum(cycle["seconds"].values()))
    probes = float(sum(value for name, value in cycle["seconds"].items() if name in PROBE_STAGES))
    return {
        "cycle": cycle["number"],
        "outcome": cycle["outcome"],
        "probe_seconds": probes,
        "seconds": seconds,
        "share": probes / seconds,
    }


def _newest(connection: Connection, table: Table, run_id: int, limit: int) -> list[Record]:
    """The newest rows of a table that numbers them, oldest of them first."""
    newest = _select(table).where(table.c.run_id == run_id).order_by(table.c.id.desc()).limit(limit)
    return _records(connection, newest)[::-1]


def _head(connection: Connection, run_id: int) -> Record | None:
    table = tables.checkpoints
    head = sa.select(tables.runs.c.head_version).where(tables.runs.c.id == run_id).scalar_subquery()
    return _first(_records(connection, _select(table).where(table.c.run_id == run_id, table.c.version == head)))


def _last_cycles(connection: Connection, run_name: str, limit: int) -> list[Record]:
    summary = views.cycle_summary
    newest = sa.select(summary).where(summary.c.run == run_name).order_by(summary.c.cycle.desc()).limit(limit)
    return _records(connection, newest)[::-1]


def _mirrored(connection: Connection, run_id: int) -> set[str]:
    tasks = tables.mirror_tasks
    there = sa.select(tasks.c.version).where(tasks.c.run_id == run_id, tasks.c.state == MirrorState.MIRRORED)
    return set(connection.scalars(there))


def _scenarios(connection: Connection, run_id: int, number: int) -> list[Record]:
    """Scenarios, each with how many completions it has, and how many of the unguided ones were judged and passed."""
    scenarios, completions = tables.scenarios, tables.completions
    unguided = completions.c.kind == CompletionKind.SWEEP
    judged = sa.func.sum(sa.case((unguided & completions.c.passed.is_not(None), 1), else_=0))
    passed = sa.func.sum(sa.case((unguided & completions.c.passed, 1), else_=0))
    counts = (
        sa.select(
            completions.c.scenario_hash,
            sa.func.count().label("num_completions"),
            judged.label("num_judged"),
            passed.label("num_passed"),
        )
        .where(completions.c.run_id == run_id, completions.c.cycle == number)
        .group_by(completions.c.scenario_hash)
        .subquery()
    )
    wanted = (
        sa.select(
            *_select(scenarios).selected_columns,
            *(
                sa.func.coalesce(counts.c[name], 0).label(name)
                for name in ("num_completions", "num_judged", "num_passed")
            ),
        )
        .outerjoin(counts, counts.c.scenario_hash == scenarios.c.content_hash)
        .where(scenarios.c.run_id == run_id, scenarios.c.cycle == number)
        .order_by(scenarios.c.position)
    )
    return _records(connection, wanted)


def _probes(means: Mapping[tuple[str, str], Record], version: str | None) -> list[Record]:
    """Per probe: how many items, their mean, and the share that passed."""
    return [{"probe": probe, **of} for (of_version, probe), of in sorted(means.items()) if of_version == version]


def _counts(connection: Connection, column: sa.Column[Any], run_id: int) -> dict[str, int]:
    found = connection.execute(
        sa.select(column, sa.func.count()).where(column.table.c.run_id == run_id, column.is_not(None)).group_by(column)
    )
    return dict(sorted((str(value), int(count)) for value, count in found))


def _select(table: Table) -> Select[Any]:
    """All columns but those that say nothing to a person."""
    return sa.select(*(column for column in table.c if column.name not in ("run_id", "last_write")))


def _records(connection: Connection, statement: Select[Any]) -> list[Record]:
    return [_plain(row) for row in connection.execute(statement).mappings()]


def _plain(row: RowMapping | Mapping[str, Any]) -> Record:
    return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in row.items()}


def _first(records: list[Record]) -> Record | None:
    return records[0] if records else None
