"""What the ledger writes for the watchdog and the governor, within its transactions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from daemon.domain.errors import DreamdError
from daemon.domain.hashing import derive_seed
from daemon.domain.probing import ProbeRun
from daemon.domain.records import Adjustments, Checkpoint, Cycle
from daemon.domain.states import CycleState
from daemon.domain.verdicts import GovernorDecision
from daemon.storage import rows, watching_rows
from daemon.storage.tables import cycles, governor_decisions, probe_results, probe_runs, resting_families, scenarios
from daemon.storage.writes import Writes


def open_cycle(
    writes: Writes,
    head: Checkpoint,
    run_seed: int,
    epoch: int,
    config: Mapping[str, Any],
    adjustments: Adjustments,
    decisions: Sequence[GovernorDecision],
) -> Cycle:
    """The next cycle's row, with what governor and breaker change of it and why.

    Raises:
        DreamdError: a decision is for another cycle.
    """
    number = writes.next_cycle_number()
    for decision in decisions:
        if decision.cycle_number != number:
            raise DreamdError(f"a decision of the governor is for cycle {decision.cycle_number}, not for {number}")
    values = {
        "number": number,
        "seed": derive_seed("cycle", run_seed, number),
        "state": CycleState.PLANNED,
        "parent_version": head.version,
        "epoch": epoch,
        "config": config,
        "seconds": {},
        "started_at": rows.now(),
        "adjustments": watching_rows.adjustments_values(adjustments),
    }
    writes.insert(cycles, values)
    writes.insert(governor_decisions, *map(watching_rows.decision_values, decisions))
    for decision in decisions:
        stored = watching_rows.decision_values(decision)
        told = ("rule", "knob", "from_value", "to_value", "until_cycle", "applied", "reason")
        writes.event("governor_decided", "info", number, {key: stored[key] for key in told})
    return writes.cycle(number)


def record_runs(writes: Writes, version: str, runs: Sequence[ProbeRun], cycle: int | None) -> None:
    """A row per run, and the results that the checkpoint does not have yet, each with the run it came from."""
    known = {
        (row.probe, row.item)
        for row in writes.connection.execute(
            sa.select(probe_results.c.probe, probe_results.c.item).where(
                probe_results.c.run_id == writes.run_id, probe_results.c.version == version
            )
        )
    }
    new = []
    for run in runs:
        measured = watching_rows.probe_run_values(run) | {"version": version, "cycle": cycle}
        insert = sa.insert(probe_runs).values(run_id=writes.run_id, **measured).returning(probe_runs.c.id)
        owner = {
            "version": version,
            "cycle": cycle,
            "measured_at": measured["measured_at"],
            "probe_run_id": writes.connection.execute(insert).scalar_one(),
        }
        for result in run.results:
            if (result.probe, result.item) not in known:
                known.add((result.probe, result.item))
                new.append(rows.probe_values(result) | owner)
    writes.insert(probe_results, *new)


def rest_families(writes: Writes, number: int, rest_cycles: int) -> None:
    """Every family of a rolled-back cycle rests, the longer the more rollbacks it was in."""
    if not rest_cycles:
        return
    of_cycle = sa.select(scenarios.c.pack, scenarios.c.family).distinct()
    drawn = writes.connection.execute(
        of_cycle.where(scenarios.c.run_id == writes.run_id, scenarios.c.cycle == number)
    ).all()
    table = resting_families
    counted = writes.connection.execute(
        sa.select(table.c.pack, table.c.family, sa.func.count())
        .where(table.c.run_id == writes.run_id)
        .group_by(table.c.pack, table.c.family)
    )
    before = {(pack, family): int(times) for pack, family, times in counted}
    values = [
        {
            "pack": pack,
            "family": family,
            "until_cycle": number + rest_cycles * (before.get((pack, family), 0) + 1),
        }
        for pack, family in sorted(tuple(row) for row in drawn)
    ]
    writes.insert(table, *values, cycle=number)
