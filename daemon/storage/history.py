"""What the ledger reads: checkpoints, lineage, cycles and what belongs to them."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection

from daemon.domain.errors import DreamdError
from daemon.domain.probing import ProbeResult
from daemon.domain.records import Checkpoint, Cycle, Example, Scenario, StepReport
from daemon.domain.states import CycleState
from daemon.domain.verdicts import Rollback
from daemon.storage import rows
from daemon.storage.tables import checkpoints, cycles, examples, probe_results, rollbacks, runs, scenarios, steps


def head_version(connection: Connection, run_id: int) -> str:
    """The run's head.

    Raises:
        DreamdError: no base is registered yet.
    """
    version: str | None = connection.scalar(sa.select(runs.c.head_version).where(runs.c.id == run_id))
    if version is None:
        raise DreamdError("the run has no head yet: its base checkpoint was never registered; run `dreamd init`")
    return version


def checkpoint(connection: Connection, run_id: int, version: str) -> Checkpoint:
    """One checkpoint's row.

    Raises:
        DreamdError: there is none.
    """
    row = connection.execute(
        sa.select(checkpoints).where(checkpoints.c.run_id == run_id, checkpoints.c.version == version)
    ).first()
    if row is None:
        raise DreamdError(f"no checkpoint {version} in the database")
    return rows.checkpoint_of(row)


def head(connection: Connection, run_id: int) -> Checkpoint:
    """The checkpoint that is the run's head."""
    return checkpoint(connection, run_id, head_version(connection, run_id))


def head_lineage(connection: Connection, run_id: int) -> tuple[Checkpoint, ...]:
    """The head and its ancestors, head first, base last."""
    return ancestry(connection, run_id, head_version(connection, run_id))


def all_checkpoints(connection: Connection, run_id: int) -> tuple[Checkpoint, ...]:
    """Every checkpoint, base first, then by cycle."""
    found = connection.execute(
        sa.select(checkpoints)
        .where(checkpoints.c.run_id == run_id)
        .order_by(sa.func.coalesce(checkpoints.c.cycle, 0), checkpoints.c.version)
    )
    return tuple(rows.checkpoint_of(row) for row in found)


def ancestry(connection: Connection, run_id: int, version: str) -> tuple[Checkpoint, ...]:
    """`version` and its ancestors, itself first, base last."""
    by_version = {found.version: found for found in all_checkpoints(connection, run_id)}
    chain: list[Checkpoint] = []
    current: str | None = version
    while current is not None:
        chain.append(by_version[current])
        current = by_version[current].parent_version
    return tuple(chain)


def cycle(connection: Connection, run_id: int, number: int) -> Cycle:
    """One cycle's row.

    Raises:
        DreamdError: there is none.
    """
    row = connection.execute(sa.select(cycles).where(cycles.c.run_id == run_id, cycles.c.number == number)).first()
    if row is None:
        raise DreamdError(f"no cycle {number} in the database")
    return rows.cycle_of(row)


def next_cycle_number(connection: Connection, run_id: int) -> int:
    """One more than the newest cycle's; numbers are never reused."""
    last = connection.scalar(sa.select(sa.func.max(cycles.c.number)).where(cycles.c.run_id == run_id))
    return (last or 0) + 1


def results(
    connection: Connection, run_id: int, version: str, last_probe_run: int | None = None
) -> tuple[ProbeResult, ...]:
    """Every probe result of a checkpoint, ordered by probe and item.

    Args:
        last_probe_run: leave out what later probe runs measured; None: nothing.
    """
    found = connection.execute(
        sa.select(probe_results).where(
            probe_results.c.run_id == run_id, probe_results.c.version == version, measured_by(last_probe_run)
        )
    )
    # Sorted here: the two databases order text differently.
    return tuple(sorted((rows.probe_of(row) for row in found), key=lambda result: (result.probe, result.item)))


def measured_by(last_probe_run: int | None) -> ColumnElement[bool]:
    """Which rows of `probe_results` there were after that run of a probe; None: all."""
    if last_probe_run is None:
        return sa.true()
    run = probe_results.c.probe_run_id
    return sa.or_(run.is_(None), run <= last_probe_run)  # those of no run are older than the first run


def cycle_scenarios(connection: Connection, run_id: int, number: int) -> tuple[Scenario, ...]:
    """A cycle's scenarios in the order they were drawn."""
    of_cycle = sa.select(scenarios).where(scenarios.c.run_id == run_id, scenarios.c.cycle == number)
    return tuple(rows.scenario_of(row) for row in connection.execute(of_cycle.order_by(scenarios.c.position)))


def cycle_examples(connection: Connection, run_id: int, number: int) -> tuple[Example, ...]:
    """A cycle's examples in batch order."""
    return tuple(rows.example_of(row) for row in _example_rows(connection, run_id, number))


def step_report(connection: Connection, run_id: int, number: int) -> StepReport:
    """What a cycle's step did.

    Raises:
        DreamdError: it has not made one.
    """
    row = connection.execute(sa.select(steps).where(steps.c.run_id == run_id, steps.c.cycle == number)).first()
    if row is None:
        raise DreamdError(f"cycle {number} has no step")
    return rows.step_of(row, _example_rows(connection, run_id, number))


def unfinished_cycles(connection: Connection, run_id: int) -> tuple[Cycle, ...]:
    """Cycles without an outcome, oldest first."""
    found = connection.execute(
        sa.select(cycles)
        .where(cycles.c.run_id == run_id, cycles.c.state != CycleState.FINISHED)
        .order_by(cycles.c.number)
    )
    return tuple(rows.cycle_of(row) for row in found)


def unverified_rollbacks(connection: Connection, run_id: int) -> tuple[Rollback, ...]:
    """Rollbacks whose restored policy was not verified yet, oldest first."""
    found = connection.execute(
        sa.select(rollbacks)
        .where(rollbacks.c.run_id == run_id, rollbacks.c.verified_at.is_(None))
        .order_by(rollbacks.c.id)
    )
    return tuple(rows.rollback_of(row) for row in found)


def _example_rows(connection: Connection, run_id: int, number: int) -> Sequence[rows.AnyRow]:
    return connection.execute(
        sa.select(examples).where(examples.c.run_id == run_id, examples.c.cycle == number).order_by(examples.c.position)
    ).all()
