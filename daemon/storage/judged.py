"""What the watchdog compares a candidate with: now, and as it stood when an earlier cycle was judged.

Both are the same code. A replay differs in what it leaves out: results measured after the verdict, rollbacks after
it, and that files were deleted after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from math import fsum
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from daemon.domain.lineage import anchors, baked, kept
from daemon.domain.records import Checkpoint, Cycle
from daemon.domain.states import CheckpointState, Side
from daemon.domain.verdicts import Anchor, Evidence, History, Judged
from daemon.storage import history, watching_rows
from daemon.storage.database import reading
from daemon.storage.references import references
from daemon.storage.rows import AnyRow
from daemon.storage.runs import find_run
from daemon.storage.tables import checkpoints, cycles, examples, probe_results, rollbacks, steps, verdicts

_MIN_PAIRS = 3
"""Fewer pairs say too little of what is usual on their side."""
RECENT = 20
"""Checkpoints of the ancestry whose steps and chosen log-probability the watchdog sees."""
_SECTIONS = ("training", "scenarios", "preferences", "sweep")
"""Of a cycle's configuration: what decides how likely a batch is and how large an update."""
_STEPPED_WITH = ("objective", "optimizer", "precision", "phase")
"""Columns of a step that do."""


def stored_verdicts(
    engine: Engine,
    run_name: str,
    first: int = 1,
    *,
    baked_after: int | None = None,
    reference_items: int | None = None,
) -> Iterator[Judged]:
    """Every verdict from cycle `first` on, oldest first, with the history and evidence that it was made of.

    Verdicts made at an earlier schema are approximate: which run of a probe measured what is not known of them.

    Args:
        baked_after: later promoted cycles after which a checkpoint is an anchor; None: as in the cycle's own settings.
        reference_items: likewise `watchdog.reference_items`.

    Raises:
        UsageError: there is no such run.
    """
    with reading(engine) as connection:
        run_id = find_run(connection, run_name).id
        numbers = connection.scalars(
            sa.select(verdicts.c.cycle)
            .where(verdicts.c.run_id == run_id, verdicts.c.cycle >= first)
            .order_by(verdicts.c.cycle)
        ).all()
    for number in numbers:
        with reading(engine) as connection:
            yield _judged(connection, run_id, number, baked_after, reference_items)


def comparison(
    connection: Connection,
    run_id: int,
    cycle: Cycle,
    baked_after: int,
    reference_items: int,
    verdict: AnyRow | None = None,
) -> History:
    """What the watchdog compares a cycle's candidate with.

    Args:
        verdict: the cycle's row of `verdicts`: the history as that verdict saw it; None: as it is now.
    """
    # A verdict of an earlier schema could see what was measured before there were probe runs.
    bound = None if verdict is None else (verdict.last_probe_run or 0)
    lineage = history.ancestry(connection, run_id, cycle.parent_version)
    if verdict is not None:
        lineage = _as_it_was(connection, run_id, lineage, cycle.number, verdict, baked_after)
    recent = lineage[:RECENT]
    a1 = baked(lineage, baked_after)
    made = _comparable_steps(connection, run_id, cycle.number, recent)
    margins = _push_back_margins(connection, run_id, [cycle.number, *(step.cycle for step in made)])
    return History(
        parent=history.results(connection, run_id, lineage[0].version, bound),
        baked=history.results(connection, run_id, a1.version, bound),
        base=history.results(connection, run_id, lineage[-1].version, bound),
        update_rms_over_lr=tuple(step.update_rms_over_lr for step in made),
        chosen_logp=_chosen_logp(connection, run_id, cycle.candidate_version, recent, bound),
        batch_logprobs=tuple((step.chosen_logprob, step.rejected_logprob) for step in made),
        batch_margins=tuple(step.margin for step in made if step.margin is not None),
        push_back_margin=margins.get(cycle.number),
        push_back_margins=tuple(margins[step.cycle] for step in made if step.cycle in margins),
        parent_anchor=Anchor(lineage[0].version, lineage[0].cycle_number or 0, len(lineage) - 1),
        anchors=anchors(lineage, baked_after),
        references=references(connection, run_id, lineage, a1.version, reference_items, bound),
        detectors=_detectors(connection, run_id, lineage[0], cycle.number),
    )


def _judged(
    connection: Connection, run_id: int, number: int, baked_after: int | None, reference_items: int | None
) -> Judged:
    cycle = history.cycle(connection, run_id, number)
    row = connection.execute(sa.select(verdicts).where(verdicts.c.run_id == run_id, verdicts.c.cycle == number)).one()
    settings = _settings(connection, run_id, number)
    candidate = str(cycle.candidate_version)
    seen = comparison(
        connection,
        run_id,
        cycle,
        baked_after or settings.get("baked_after", 10),
        reference_items or settings.get("reference_items", 400),
        row,
    )
    verdict = watching_rows.verdict_of(row)
    if verdict.regressed and verdict.to_version is None:  # of an earlier schema
        went = sa.select(rollbacks.c.to_version).where(rollbacks.c.run_id == run_id, rollbacks.c.cycle == number)
        verdict = replace(verdict, to_version=connection.scalar(went))
    results = history.results(connection, run_id, candidate, row.last_probe_run or 0)
    evidence = Evidence(history.step_report(connection, run_id, number), results)
    return Judged(number, candidate, cycle.parent_version, seen, evidence, verdict)


def _settings(connection: Connection, run_id: int, number: int) -> dict[str, Any]:
    """The section `watchdog` of the configuration that a cycle ran with."""
    config = connection.scalar(sa.select(cycles.c.config).where(cycles.c.run_id == run_id, cycles.c.number == number))
    return dict((config or {}).get("watchdog") or {})


def _as_it_was(
    connection: Connection, run_id: int, lineage: Sequence[Checkpoint], number: int, verdict: AnyRow, baked_after: int
) -> tuple[Checkpoint, ...]:
    """`lineage` with the files that there were when cycle `number` was judged."""
    found = connection.execute(
        sa.select(
            checkpoints.c.version, checkpoints.c.state, checkpoints.c.pruned_after, checkpoints.c.lossy_after
        ).where(
            checkpoints.c.run_id == run_id,
            sa.or_(checkpoints.c.state == CheckpointState.PRUNED, checkpoints.c.lossy_after.is_not(None)),
        )
    ).all()
    deleted = {row.version: row.pruned_after for row in found if row.state == CheckpointState.PRUNED}
    exact = {row.version for row in found if row.lossy_after is not None and row.lossy_after >= number}
    if verdict.last_probe_run is None:  # of an earlier schema, which did not record when files went
        there = set(deleted) & kept(lineage, baked_after, 1)
    else:
        there = {version for version, after in deleted.items() if after is not None and after >= number}
    return tuple(
        replace(
            checkpoint,
            state=CheckpointState.PROMOTED if checkpoint.version in there else checkpoint.state,
            exact=checkpoint.exact or checkpoint.version in exact,
        )
        for checkpoint in lineage
    )


def _comparable_steps(connection: Connection, run_id: int, number: int, recent: Sequence[Checkpoint]) -> list[AnyRow]:
    """The steps that made `recent`, back to the last one that was made otherwise than cycle `number`'s; oldest first.

    What a refused candidate shows never becomes part of the history, so a history that outlives a change of settings
    would refuse every candidate after the change.

    Args:
        recent: the parent and its ancestors, parent first.
    """
    numbers = [found.cycle_number for found in recent if found.cycle_number is not None]
    of_these = sa.select(steps).where(steps.c.run_id == run_id, steps.c.cycle.in_([*numbers, number]))
    by_cycle = {row.cycle: row for row in connection.execute(of_these)}
    configs = sa.select(cycles.c.number, cycles.c.config).where(
        cycles.c.run_id == run_id, cycles.c.number.in_([*numbers, number])
    )
    settings = {row.number: [row.config.get(name) for name in _SECTIONS] for row in connection.execute(configs)}
    own = by_cycle.get(number)
    made: list[AnyRow] = []
    for earlier in numbers:
        row = by_cycle.get(earlier)
        if row is None or settings[earlier] != settings[number]:
            break
        if own is not None and any(getattr(row, name) != getattr(own, name) for name in _STEPPED_WITH):
            break
        made.append(row)
    return made[::-1]


def _push_back_margins(connection: Connection, run_id: int, numbers: Sequence[int]) -> dict[int, float]:
    """Cycle -> mean over its push-back pairs of chosen minus rejected log-probability; absent with too few pairs."""
    found = connection.execute(
        sa.select(examples.c.cycle, examples.c.chosen_logprob, examples.c.rejected_logprob).where(
            examples.c.run_id == run_id,
            examples.c.cycle.in_(numbers),
            examples.c.side == Side.PUSH_BACK,
            examples.c.chosen_logprob.is_not(None),
            examples.c.rejected_logprob.is_not(None),
        )
    )
    of: dict[int, list[float]] = {}
    for row in found:
        of.setdefault(row.cycle, []).append(row.chosen_logprob - row.rejected_logprob)
    return {number: fsum(each) / len(each) for number, each in of.items() if len(each) >= _MIN_PAIRS}


def _chosen_logp(
    connection: Connection,
    run_id: int,
    candidate: str | None,
    recent: Sequence[Checkpoint],
    last_probe_run: int | None,
) -> tuple[float, ...]:
    """Mean held-out chosen log-probability of each of `recent`, over the same items; oldest first.

    The items are the candidate's, before it is measured its parent's. A checkpoint that lacks one of them ends the
    series: the items changed since, and a mean over other items moves without the model.

    Args:
        recent: the parent and its ancestors, parent first.
    """
    versions = [*(found.version for found in recent), *([candidate] if candidate else [])]
    found = connection.execute(
        sa.select(probe_results.c.version, probe_results.c.item, probe_results.c.value).where(
            probe_results.c.run_id == run_id,
            probe_results.c.probe == "chosen_logp",
            probe_results.c.value.is_not(None),
            probe_results.c.version.in_(versions),
            history.measured_by(last_probe_run),
        )
    )
    values: dict[str, dict[str, float]] = {}
    for row in found:
        values.setdefault(row.version, {})[row.item] = row.value
    items = set(values.get(candidate or "") or values.get(recent[0].version, {}))
    series = takewhile(lambda of: bool(items) and items <= of.keys(), (values.get(at.version, {}) for at in recent))
    # fsum is exact, so the order in which the database returns rows does not matter.
    return tuple(fsum(of[item] for item in items) / len(items) for of in series)[::-1]


def _detectors(connection: Connection, run_id: int, parent: Checkpoint, number: int) -> dict[str, Any]:
    """What the verdict that promoted `parent` left to its child; empty when the head was moved back since."""
    moved = connection.scalar(
        sa.select(sa.func.max(rollbacks.c.after_cycle)).where(
            rollbacks.c.run_id == run_id, rollbacks.c.after_cycle < number
        )
    )
    if parent.cycle_number is None or parent.cycle_number <= (moved or 0):
        return {}
    evidence = connection.scalar(
        sa.select(verdicts.c.evidence).where(verdicts.c.run_id == run_id, verdicts.c.cycle == parent.cycle_number)
    )
    return dict((evidence or {}).get("detectors") or {})
