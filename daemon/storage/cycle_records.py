"""What governor, breaker and the schedule of probes see of earlier cycles."""

from __future__ import annotations

from collections.abc import Collection
from statistics import median

import sqlalchemy as sa
from sqlalchemy import Connection

from daemon.domain.probing import ProbeBudget
from daemon.domain.states import CycleState, Outcome, ProbeReason
from daemon.domain.verdicts import CycleRecord
from daemon.storage import history
from daemon.storage.kinds import PROBE_STAGES
from daemon.storage.rows import AnyRow
from daemon.storage.tables import cycles, probe_runs, steps, verdicts

_STEPPED = 10
"""Cycles whose median length a probe's share is taken of."""


def budget(connection: Connection, run_id: int) -> ProbeBudget:
    """What each probe last took within a cycle, and how long cycles are without probes."""
    scheduled = (ProbeReason.CORE, ProbeReason.SCHEDULED, ProbeReason.SUSPICION)
    newest = (
        sa.select(sa.func.max(probe_runs.c.id))
        .where(probe_runs.c.run_id == run_id, probe_runs.c.cycle.is_not(None), probe_runs.c.reason.in_(scheduled))
        .group_by(probe_runs.c.probe)
    )
    found = connection.execute(sa.select(probe_runs).where(probe_runs.c.id.in_(newest)).order_by(probe_runs.c.id)).all()
    return ProbeBudget(
        seconds={row.probe: row.seconds for row in found},
        last_cycle={row.probe: row.cycle for row in found},
        cycle_seconds=_cycle_seconds(connection, run_id),
    )


def records(connection: Connection, run_id: int, limit: int, after_cycle: int) -> tuple[CycleRecord, ...]:
    """The newest `limit` finished cycles after `after_cycle`, oldest first.

    A promoted cycle that any rollback undid since has no means and differences: the model is not where they were.
    """
    found = connection.execute(
        sa.select(cycles, steps.c.lr, verdicts.c.evidence)
        .outerjoin(steps, (steps.c.run_id == cycles.c.run_id) & (steps.c.cycle == cycles.c.number))
        .outerjoin(verdicts, (verdicts.c.run_id == cycles.c.run_id) & (verdicts.c.cycle == cycles.c.number))
        .where(cycles.c.run_id == run_id, cycles.c.state == CycleState.FINISHED, cycles.c.number > after_cycle)
        .order_by(cycles.c.number.desc())
        .limit(limit)
    ).all()
    lineage = {checkpoint.version for checkpoint in history.head_lineage(connection, run_id)} if found else set()
    return tuple(_record(row, lineage) for row in reversed(found))


def _record(row: AnyRow, lineage: Collection[str]) -> CycleRecord:
    outcome = Outcome(row.outcome)
    undone = outcome is Outcome.PROMOTED and row.candidate_version not in lineage
    # What the verdict computed, to the bit: an average by the database would depend on the order of its rows.
    evidence = {} if undone else row.evidence or {}
    means = {probe: of["now"] for probe, of in evidence.get("means", {}).items() if of.get("now") is not None}
    return CycleRecord(
        number=row.number,
        outcome=outcome,
        reason=row.reason,
        lr=row.lr,
        means=means,
        differences=evidence.get("differences", {}),
        fell=tuple(evidence.get("fell") or ()) if outcome is Outcome.ROLLED_BACK else (),
    )


def _cycle_seconds(connection: Connection, run_id: int) -> float | None:
    """Median over the newest cycles with a step, without their probes; None: there is none."""
    found = connection.scalars(
        sa.select(cycles.c.seconds)
        .join(steps, (steps.c.run_id == cycles.c.run_id) & (steps.c.cycle == cycles.c.number))
        .where(cycles.c.run_id == run_id, cycles.c.state == CycleState.FINISHED)
        .order_by(cycles.c.number.desc())
        .limit(2 * _STEPPED)
    )
    # A process that was killed left a cycle without seconds.
    lengths = [sum(value for name, value in stages.items() if name not in PROBE_STAGES) for stages in found if stages]
    return median(lengths[:_STEPPED]) if lengths else None
