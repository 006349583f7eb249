"""What governor, breaker and the schedule of probes see of earlier cycles."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Select

from daemon.domain.probing import ProbeBudget
from daemon.domain.states import CheckpointState, CycleState, Outcome, ProbeReason
from daemon.domain.verdicts import CycleRecord
from daemon.storage.chunks import chunks
from daemon.storage.kinds import PROBE_STAGES
from daemon.storage.rows import AnyRow
from daemon.storage.tables import checkpoints, cycles, probe_results, probe_runs, steps, verdicts

_STEPPED = 10
"""Cycles whose median length a probe's share is taken of."""

Means = dict[str, dict[str, float]]
"""Version -> probe -> mean."""


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
    """The newest `limit` finished cycles after `after_cycle`, oldest first."""
    found = connection.execute(
        sa.select(cycles, steps.c.lr, verdicts.c.evidence)
        .outerjoin(steps, (steps.c.run_id == cycles.c.run_id) & (steps.c.cycle == cycles.c.number))
        .outerjoin(verdicts, (verdicts.c.run_id == cycles.c.run_id) & (verdicts.c.cycle == cycles.c.number))
        .where(cycles.c.run_id == run_id, cycles.c.state == CycleState.FINISHED, cycles.c.number > after_cycle)
        .order_by(cycles.c.number.desc())
        .limit(limit)
    ).all()
    versions = [row.candidate_version for row in found if row.candidate_version is not None]
    means = _means(connection, run_id, versions)
    differences = _differences(connection, run_id, versions)
    return tuple(_record(row, means, differences) for row in reversed(found))


def _record(row: AnyRow, means: Means, differences: Means) -> CycleRecord:
    outcome = Outcome(row.outcome)
    fell = (row.evidence or {}).get("fell") or () if outcome is Outcome.ROLLED_BACK else ()
    return CycleRecord(
        number=row.number,
        outcome=outcome,
        reason=row.reason,
        lr=row.lr,
        means=means.get(row.candidate_version, {}),
        differences=differences.get(row.candidate_version, {}),
        fell=tuple(fell),
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


def _means(connection: Connection, run_id: int, versions: Sequence[str]) -> Means:
    """Each probe's mean over its items."""
    value = sa.cast(probe_results.c.value, sa.Double)
    wanted = (
        sa.select(probe_results.c.version, probe_results.c.probe, sa.func.avg(value).label("mean"))
        .where(probe_results.c.run_id == run_id, probe_results.c.value.is_not(None))
        .group_by(probe_results.c.version, probe_results.c.probe)
    )
    return _by_version(connection, wanted, probe_results.c.version, versions)


def _differences(connection: Connection, run_id: int, versions: Sequence[str]) -> Means:
    """Each paired probe's mean over the items that the base has too, minus the base's; pass/fail probes are not."""
    now, then = probe_results.alias("now"), probe_results.alias("then")
    base = (
        sa.select(checkpoints.c.version)
        .where(checkpoints.c.run_id == run_id, checkpoints.c.state == CheckpointState.BASE)
        .scalar_subquery()
    )
    same_item = (then.c.run_id == now.c.run_id) & (then.c.probe == now.c.probe) & (then.c.item == now.c.item)
    difference = sa.cast(now.c.value, sa.Double) - sa.cast(then.c.value, sa.Double)
    wanted = (
        sa.select(now.c.version, now.c.probe, sa.func.avg(difference).label("mean"))
        .select_from(now)
        .join(then, same_item & (then.c.version == base))
        .where(now.c.run_id == run_id, now.c.value.is_not(None), then.c.value.is_not(None), now.c.passed.is_(None))
        .group_by(now.c.version, now.c.probe)
    )
    return _by_version(connection, wanted, now.c.version, versions)


def _by_version(
    connection: Connection, wanted: Select[Any], version: sa.ColumnElement[str], versions: Sequence[str]
) -> Means:
    found: Means = {}
    for chunk in chunks(versions):
        for row in connection.execute(wanted.where(version.in_(chunk))):
            found.setdefault(row.version, {})[row.probe] = float(row.mean)
    return {name: dict(sorted(probes.items())) for name, probes in found.items()}
