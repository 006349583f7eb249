"""Breaker, governor and resting families: what holds now, and how the breaker changes."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from daemon.domain.errors import UsageError
from daemon.domain.records import Adjustments
from daemon.domain.states import BreakerState
from daemon.domain.verdicts import Breaker, GovernorDecision
from daemon.storage import watching_rows
from daemon.storage.database import writing
from daemon.storage.rows import Values, now
from daemon.storage.runs import lock_run
from daemon.storage.tables import breaker_changes, cycles, events, governor_decisions, resting_families

NEVER_CHANGED = Breaker(BreakerState.CLOSED, "", 0)
"""The breaker of a run that it never opened for."""

NUM_DECISIONS = 200
"""Newest decisions that the governor is shown, whatever they are."""

_EVENTS = {
    BreakerState.OPEN: ("breaker_opened", "error"),
    BreakerState.HALF_OPEN: ("breaker_half_open", "warning"),
    BreakerState.CLOSED: ("breaker_closed", "info"),
}


def acknowledge_breaker(engine: Engine, run_name: str, reason: str) -> dict[str, Any]:
    """An operator's word that an open breaker may try one cycle now; the daemon may run meanwhile.

    Args:
        reason: what was found or changed; it is recorded.

    Returns:
        The change, as plain values: a row of `breaker_changes`.

    Raises:
        UsageError: the breaker is not open, or there is no such run; nothing changed.
    """
    with writing(engine) as connection:
        run_id = lock_run(connection, run_name)
        stored = breaker(connection, run_id)
        if stored.state is not BreakerState.OPEN:
            raise UsageError(
                f"run {run_name}: the breaker is {str(stored.state).replace('_', '-')}, not open: there is nothing to "
                "acknowledge; `dreamd breaker status` says how it came to that"
            )
        last = connection.scalar(sa.select(sa.func.max(cycles.c.number)).where(cycles.c.run_id == run_id))
        acknowledged = Breaker(
            state=BreakerState.HALF_OPEN,
            reason=f"acknowledged by an operator: {reason}",
            since_cycle=max(last or 0, stored.since_cycle),
            num_openings=stored.num_openings,
            acknowledged=True,
            evidence={"acknowledged": reason, "opened_because": stored.reason},
        )
        row = change_breaker(connection, run_id, acknowledged)
    return row | {"changed_at": row["changed_at"].isoformat()}


def change_breaker(connection: Connection, run_id: int, changed: Breaker) -> Values:
    """Store a new state of the breaker and its event; returns the row without `run_id`."""
    values = watching_rows.breaker_values(changed) | {"changed_at": now()}
    insert = sa.insert(breaker_changes).values(run_id=run_id, **values).returning(breaker_changes)
    row = dict(connection.execute(insert).mappings().one())
    name, level = _EVENTS[changed.state]
    payload = {key: row[key] for key in ("reason", "cycle", "num_openings", "until", "acknowledged")}
    connection.execute(sa.insert(events).values(run_id=run_id, level=level, name=name, payload=payload, at=now()))
    del row["run_id"]
    return row


def breaker(connection: Connection, run_id: int) -> Breaker:
    """The newest state."""
    newest = sa.select(breaker_changes).where(breaker_changes.c.run_id == run_id)
    row = connection.execute(newest.order_by(breaker_changes.c.id.desc()).limit(1)).first()
    return NEVER_CHANGED if row is None else watching_rows.breaker_of(row)


def adjustments(connection: Connection, run_id: int, number: int) -> Adjustments:
    """What governor and breaker changed for a cycle."""
    stored = connection.scalar(
        sa.select(cycles.c.adjustments).where(cycles.c.run_id == run_id, cycles.c.number == number)
    )
    return watching_rows.adjustments_of(stored)


def decisions(connection: Connection, run_id: int) -> tuple[GovernorDecision, ...]:
    """The newest `NUM_DECISIONS`, and of each knob the newest applied one and the newest applied that lasts; by age.

    A lasting decision holds until the next one on its knob, however many decisions on others come in between; and one
    that is temporary hides it for a time only.
    """
    table = governor_decisions
    of_run = table.c.run_id == run_id
    newest = sa.select(table.c.id).where(of_run).order_by(table.c.id.desc()).limit(NUM_DECISIONS)
    wanted = set(connection.scalars(newest))
    applied = sa.select(sa.func.max(table.c.id)).where(of_run, table.c.applied).group_by(table.c.knob)
    wanted |= {*connection.scalars(applied), *connection.scalars(applied.where(table.c.until_cycle.is_(None)))}
    found = connection.execute(sa.select(table).where(table.c.id.in_(wanted)).order_by(table.c.id))
    return tuple(watching_rows.decision_of(row) for row in found)


def resting(connection: Connection, run_id: int, number: int) -> list[Values]:
    """The families that rest in a cycle, each with the last cycle it rests in and the rollbacks it was in before."""
    table = resting_families
    until = sa.func.max(table.c.until_cycle)
    found = connection.execute(
        sa.select(table.c.pack, table.c.family, until.label("until_cycle"), sa.func.count().label("num_rollbacks"))
        .where(table.c.run_id == run_id, table.c.cycle < number)
        .group_by(table.c.pack, table.c.family)
        .having(until >= number)
    ).mappings()
    # Sorted here: the two databases order text differently.
    return sorted((dict(row) for row in found), key=lambda row: (row["pack"], row["family"]))
