"""The statements that the ledger's transactions are made of, on one connection and for one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection, Table

from daemon.domain.errors import DreamdError
from daemon.domain.records import Cycle, Draw, Judgement, StepReport
from daemon.domain.states import CheckpointState, CycleState, Outcome, RollbackCause
from daemon.domain.verdicts import Rollback, Verdict
from daemon.storage import history, rows, tables, watching_rows
from daemon.storage.claims import insert_claims
from daemon.storage.kinds import ChangeReason, ClaimKind


class Writes:
    """Statements within an open, fenced transaction."""

    def __init__(self, connection: Connection, run_id: int) -> None:
        self.connection = connection
        self.run_id = run_id

    def cycle(self, number: int) -> Cycle:
        """The cycle as this transaction sees it."""
        return history.cycle(self.connection, self.run_id, number)

    def require_state(self, cycle: Cycle, expected: CycleState) -> Cycle:
        """The stored cycle; refuse when its state is not `expected`."""
        stored = self.cycle(cycle.number)
        if stored.state is not expected:
            raise DreamdError(f"cycle {cycle.number} is {stored.state}, not {expected}: this step is not its next")
        return stored

    def require_idle(self) -> None:
        """Refuse while a cycle has no outcome."""
        for cycle in history.unfinished_cycles(self.connection, self.run_id):
            raise DreamdError(f"cycle {cycle.number} is {cycle.state}: it must end first")

    def require_head(self, version: str) -> None:
        """Refuse when another checkpoint is the head."""
        head = history.head_version(self.connection, self.run_id)
        if head != version:
            raise DreamdError(f"the head is {head}, not {version}: the cycle's parent is no longer live")

    def require_seed(self, seed: int, run_name: str) -> None:
        """Refuse another seed than the run was made with."""
        stored = self.connection.scalar(sa.select(tables.runs.c.seed).where(tables.runs.c.id == self.run_id))
        if stored != seed:
            raise DreamdError(f"run {run_name} was made with seed {stored}; it cannot go on with {seed}")

    def insert(self, table: Table, *values: Mapping[str, Any], cycle: int | None = None) -> None:
        """Insert rows of this run, and of `cycle` where given."""
        owner: dict[str, Any] = {"run_id": self.run_id} | ({} if cycle is None else {"cycle": cycle})
        if values:
            self.connection.execute(sa.insert(table), [{**row, **owner} for row in values])

    def update_run(self, **values: Any) -> None:
        self.connection.execute(sa.update(tables.runs).where(tables.runs.c.id == self.run_id).values(values))

    def update_cycle(self, number: int, **values: Any) -> Cycle:
        """Change a cycle's row; returns it as it stands now."""
        cycles = tables.cycles
        self.connection.execute(
            sa.update(cycles).where(cycles.c.run_id == self.run_id, cycles.c.number == number).values(values)
        )
        return self.cycle(number)

    def finish(self, number: int, outcome: Outcome, reason: str) -> Outcome:
        self.update_cycle(number, state=CycleState.FINISHED, outcome=outcome, reason=reason, finished_at=rows.now())
        return outcome

    def plan(self, number: int, draw: Draw) -> None:
        """What a cycle drew: scenarios, refusals, reads of imported sources, events."""
        planned = [rows.scenario_values(position, scenario) for position, scenario in enumerate(draw.scenarios)]
        self.insert(tables.scenarios, *planned, cycle=number)
        self.insert(tables.refusals, *map(rows.refusal_values, draw.refusals), cycle=number)
        self.insert(tables.source_reads, *map(rows.read_values, draw.reads), cycle=number)
        for name, payload in draw.events:
            self.event(name, "warning" if name.startswith("source_") else "info", number, payload)

    def judge(self, number: int, judgements: Sequence[Judgement]) -> None:
        """Write each judgement beside its completion."""
        completions = tables.completions
        for judgement in judgements:
            changed = self.connection.execute(
                sa.update(completions)
                .where(self._of(completions, number), completions.c.ordinal == judgement.ordinal)
                .values(
                    passed=judgement.passed,
                    score=judgement.score,
                    judge_reason=judgement.reason,
                    judge=judgement.judge,
                )
            )
            if changed.rowcount != 1:
                raise DreamdError(f"cycle {number} has no completion {judgement.ordinal} to judge")

    def example_logprobs(self, number: int, logprobs: Sequence[tuple[float, float | None]]) -> None:
        """Write each example's log-probabilities beside it, by its position in the batch."""
        examples = tables.examples
        for position, (chosen, rejected) in enumerate(logprobs):
            self.connection.execute(
                sa.update(examples)
                .where(self._of(examples, number), examples.c.position == position)
                .values(chosen_logprob=rows.finite_or_none(chosen), rejected_logprob=rows.finite_or_none(rejected))
            )

    def lr_change(self, number: int, report: StepReport) -> None:
        """A row when the learning rate or objective is not that of the run's step before, and for its first step.

        The step's own row must not be there yet.
        """
        steps = tables.steps
        previous = self.connection.execute(
            sa.select(steps).where(steps.c.run_id == self.run_id).order_by(steps.c.cycle.desc()).limit(1)
        ).first()
        if previous is not None and (previous.lr, previous.objective) == (report.lr, report.objective):
            return
        values = {
            "previous_lr": None if previous is None else previous.lr,
            "lr": report.lr,
            "previous_objective": None if previous is None else previous.objective,
            "objective": report.objective,
            "phase": report.phase,
            "reason": self._change_reason(number, report, previous),
            "changed_at": rows.now(),
        }
        self.insert(tables.lr_changes, values, cycle=number)

    def scenario_hashes(self, number: int) -> tuple[str, ...]:
        """The cycle's scenarios, in order."""
        scenarios = tables.scenarios
        found = self.connection.scalars(
            sa.select(scenarios.c.content_hash).where(self._of(scenarios, number)).order_by(scenarios.c.position)
        )
        return tuple(found)

    def claim(self, number: int, kind: ClaimKind, hashes: Sequence[str]) -> None:
        insert_claims(self.connection, self.run_id, kind, number, hashes)

    def next_cycle_number(self) -> int:
        return history.next_cycle_number(self.connection, self.run_id)

    def last_finished(self) -> int:
        """Number of the newest finished cycle; 0 before the first."""
        cycles = tables.cycles
        number = self.connection.scalar(
            sa.select(sa.func.max(cycles.c.number)).where(
                cycles.c.run_id == self.run_id, cycles.c.state == CycleState.FINISHED
            )
        )
        return number or 0

    def set_checkpoint(self, version: str | None, state: CheckpointState, **values: Any) -> None:
        """A checkpoint's state, and `values` of its other columns."""
        checkpoints = tables.checkpoints
        self.connection.execute(
            sa.update(checkpoints)
            .where(checkpoints.c.run_id == self.run_id, checkpoints.c.version == version)
            .values(state=state, **values)
        )

    def verdict(self, number: int, verdict: Verdict) -> None:
        """Write a verdict, and how much had been measured when it was made: a replay must see no more."""
        probe_runs = tables.probe_runs
        newest = self.connection.scalar(
            sa.select(sa.func.max(probe_runs.c.id)).where(probe_runs.c.run_id == self.run_id)
        )
        values = watching_rows.verdict_values(verdict) | {"last_probe_run": newest or 0}
        self.insert(tables.verdicts, values, cycle=number)

    def event(self, name: str, level: str, cycle: int | None, payload: Mapping[str, Any]) -> None:
        self.insert(tables.events, {"level": level, "name": name, "cycle": cycle, "payload": payload, "at": rows.now()})

    def move_head(
        self,
        cause: RollbackCause,
        cycle: int | None,
        from_version: str,
        to_version: str,
        reason: str,
        evidence: Mapping[str, Any],
    ) -> Rollback:
        """Roll the head back: the run's row, the rollback's row and its event."""
        self.update_run(head_version=to_version)
        values = {
            "run_id": self.run_id,
            "cycle": cycle,
            "cause": cause,
            "from_version": from_version,
            "to_version": to_version,
            "reason": reason,
            "evidence": evidence,
            "rolled_back_at": rows.now(),
            "after_cycle": self.next_cycle_number() - 1,
        }
        row = self.connection.execute(sa.insert(tables.rollbacks).values(values).returning(tables.rollbacks)).one()
        payload = {"cause": cause, "from": from_version, "to": to_version, "reason": reason}
        self.event("rolled_back", "warning", cycle, payload)
        return rows.rollback_of(row)

    def rollback_verified(self, rollback_id: int, evidence: Mapping[str, Any]) -> None:
        """The proof that a rollback's target is live.

        Raises:
            DreamdError: there is no such rollback that waits for it.
        """
        rollbacks = tables.rollbacks
        changed = self.connection.execute(
            sa.update(rollbacks)
            .where(rollbacks.c.run_id == self.run_id, rollbacks.c.id == rollback_id)
            .where(rollbacks.c.verified_at.is_(None))
            .values(verified_at=rows.now(), verification=evidence)
        )
        if changed.rowcount != 1:
            raise DreamdError(f"rollback {rollback_id} is unknown, or verified already")

    def add_seconds(self, number: int, seconds: Mapping[str, float]) -> None:
        """Seconds of a cycle's stages, beside those recorded already."""
        cycles = tables.cycles
        known = self.connection.scalar(
            sa.select(cycles.c.seconds).where(cycles.c.run_id == self.run_id, cycles.c.number == number)
        )
        self.update_cycle(number, seconds={**(known or {}), **seconds})

    def _change_reason(self, number: int, report: StepReport, previous: rows.AnyRow | None) -> ChangeReason:
        if previous is None:
            return ChangeReason.FIRST_STEP
        if previous.phase != report.phase:
            return ChangeReason.PHASE
        same = self._training_config(number) == self._training_config(previous.cycle)
        return ChangeReason.SCHEDULE if same else ChangeReason.CONFIGURATION

    def _training_config(self, number: int) -> Any:
        """The section `training` of the configuration that the cycle ran with."""
        cycles = tables.cycles
        config = self.connection.scalar(
            sa.select(cycles.c.config).where(cycles.c.run_id == self.run_id, cycles.c.number == number)
        )
        return (config or {}).get("training")

    def _of(self, table: Table, number: int) -> ColumnElement[bool]:
        return sa.and_(table.c.run_id == self.run_id, table.c.cycle == number)
