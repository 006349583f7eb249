"""The ledger: each state change of a cycle is one transaction, fenced by the run's epoch.

Every write locks the run's row first, so writers of one run go one after the other; then it compares the
epoch, then the cycle's state. What a stage hands over and what the row says must agree, or nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from daemon.domain.diversity import Diversity
from daemon.domain.errors import DatabaseError, DreamdError, FencedError
from daemon.domain.hashing import batch_hash
from daemon.domain.probing import ProbeBudget, ProbeResult, ProbeRun
from daemon.domain.records import (
    Adjustments,
    Batch,
    Checkpoint,
    Completion,
    Cycle,
    Draw,
    EngineCheck,
    Example,
    ImportedSource,
    Judgement,
    Refusal,
    Scenario,
    StepReport,
)
from daemon.domain.states import CheckpointState, CycleState, Outcome, RollbackCause
from daemon.domain.verdicts import Breaker, CycleRecord, GovernorDecision, History, Rollback, Verdict
from daemon.storage import (
    checks,
    cycle_records,
    history,
    near_duplicates,
    rows,
    sources,
    spending,
    tables,
    watching,
    watching_writes,
)
from daemon.storage.claims import already_claimed, refuse_twice
from daemon.storage.database import reading, writing
from daemon.storage.held_out_texts import HeldOutTexts
from daemon.storage.judged import comparison
from daemon.storage.kinds import ClaimKind
from daemon.storage.runs import take_over
from daemon.storage.writes import Writes

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class SqlLedger:
    """`ports.Ledger` on SQLite or PostgreSQL. Made by `acquire`, by the process that holds the `RunLock`."""

    def __init__(
        self,
        engine: Engine,
        run_id: int,
        run_name: str,
        epoch: int,
        baked_after: int = 10,
        rest_cycles: int = 10,
        reference_items: int = 400,
    ) -> None:
        self._engine = engine
        self._run_id = run_id
        self._baked_after = baked_after
        self._rest_cycles = rest_cycles
        self._reference_items = reference_items
        self._held_out = HeldOutTexts()
        self.run_name = run_name
        self.epoch = epoch

    @classmethod
    def acquire(
        cls,
        engine: Engine,
        run_name: str,
        *,
        baked_after: int = 10,
        rest_cycles: int = 10,
        reference_items: int = 400,
    ) -> Self:
        """Take the run over: ledgers acquired earlier can write nothing from now on.

        Args:
            baked_after: `watchdog.baked_after`, later promoted cycles after which a checkpoint is an anchor.
            rest_cycles: `governor.rest_cycles`, that the families of a rolled-back cycle rest; 0: none.
            reference_items: `watchdog.reference_items`, that an anchor's failure rate is taken from.

        Raises:
            UsageError: there is no such run.
        """
        run = take_over(engine, run_name)
        ledger = cls(engine, run.id, run.name, run.epoch, baked_after, rest_cycles, reference_items)
        spending.complete_fingerprints(ledger._write)
        return ledger

    # reading

    def head(self) -> Checkpoint:
        return self._read(history.head)

    def checkpoint(self, version: str) -> Checkpoint:
        return self._read(history.checkpoint, version)

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        return self._read(history.all_checkpoints)

    def lineage(self) -> tuple[Checkpoint, ...]:
        return self._read(history.head_lineage)

    def refuse(self, scenarios: Sequence[Scenario]) -> Mapping[str, Refusal]:
        return self._read(spending.refusals, scenarios, self._held_out)

    def sources(self) -> tuple[ImportedSource, ...]:
        return self._read(sources.approved)

    def cycle(self, number: int) -> Cycle:
        return self._read(history.cycle, number)

    def unfinished(self) -> tuple[Cycle, ...]:
        return self._read(history.unfinished_cycles)

    def examples(self, cycle: Cycle) -> tuple[Example, ...]:
        return self._read(history.cycle_examples, cycle.number)

    def step_report(self, cycle: Cycle) -> StepReport:
        return self._read(history.step_report, cycle.number)

    def probe_results(self, version: str) -> tuple[ProbeResult, ...]:
        return self._read(history.results, version)

    def history(self, cycle: Cycle) -> History:
        return self._read(comparison, cycle, self._baked_after, self._reference_items)

    def probe_budget(self) -> ProbeBudget:
        return self._read(cycle_records.budget)

    def resting(self, cycle_number: int) -> Mapping[tuple[str, str], int]:
        found = self._read(watching.resting, cycle_number)
        return {(row["pack"], row["family"]): row["num_rollbacks"] for row in found}

    def records(self, limit: int, after_cycle: int = 0) -> tuple[CycleRecord, ...]:
        return self._read(cycle_records.records, limit, after_cycle)

    def governor_decisions(self) -> tuple[GovernorDecision, ...]:
        return self._read(watching.decisions)

    def breaker(self) -> Breaker:
        return self._read(watching.breaker)

    def adjustments(self, cycle: Cycle) -> Adjustments:
        return self._read(watching.adjustments, cycle.number)

    def next_cycle_number(self) -> int:
        return self._read(history.next_cycle_number)

    def pending_rollbacks(self) -> tuple[Rollback, ...]:
        return self._read(history.unverified_rollbacks)

    # writing

    def register_base(self, checkpoint: Checkpoint) -> None:
        """The base model as the run's first head. Registering the same base again changes nothing.

        Raises:
            DreamdError: it has a parent, or the run has another base.
        """
        base = replace(checkpoint, state=CheckpointState.BASE)
        if base.parent_version is not None or base.cycle_number is not None:
            raise DreamdError(f"checkpoint {base.version} came from a cycle: it is not a base")
        with self._write() as writes:
            known = history.all_checkpoints(writes.connection, self._run_id)
            if not known:
                writes.insert(tables.checkpoints, rows.checkpoint_values(base))
                writes.update_run(head_version=base.version)
            elif known[0] != base:
                raise DreamdError(f"run {self.run_name} has another base already: {known[0].version}")

    def open_cycle(
        self,
        *,
        head: Checkpoint,
        run_seed: int,
        config: Mapping[str, Any],
        adjustments: Adjustments = Adjustments(),  # noqa: B008 - frozen
        decisions: Sequence[GovernorDecision] = (),
    ) -> Cycle:
        with self._write() as writes:
            writes.require_idle()
            writes.require_head(head.version)
            writes.require_seed(run_seed, self.run_name)
            return watching_writes.open_cycle(writes, head, run_seed, self.epoch, config, adjustments, decisions)

    def change_breaker(self, breaker: Breaker) -> None:
        with self._write() as writes:
            watching.change_breaker(writes.connection, self._run_id, breaker)

    def record_plan(self, cycle: Cycle, draw: Draw) -> Cycle:
        with self._write() as writes:
            stored = writes.require_state(cycle, CycleState.PLANNED)
            if writes.scenario_hashes(cycle.number):
                raise DreamdError(f"cycle {cycle.number} has its scenarios already")
            writes.plan(cycle.number, draw)
            return stored

    def record_sweep(self, cycle: Cycle, completions: Sequence[Completion]) -> Cycle:
        with self._write() as writes:
            checks.check_policy(writes.require_state(cycle, CycleState.PLANNED), completions)
            swept = [rows.completion_values(completion) for completion in completions]
            writes.insert(tables.completions, *swept, cycle=cycle.number)
            return writes.update_cycle(cycle.number, state=CycleState.SWEPT)

    def record_pairs(
        self, cycle: Cycle, judgements: Sequence[Judgement], examples: Sequence[Example], diversity: Diversity
    ) -> Cycle:
        with self._write() as writes:
            writes.require_state(cycle, CycleState.SWEPT)
            writes.judge(cycle.number, judgements)
            paired = [rows.example_values(position, example) for position, example in enumerate(examples)]
            writes.insert(tables.examples, *paired, cycle=cycle.number)
            writes.insert(tables.batch_diversity, rows.diversity_values(diversity), cycle=cycle.number)
            return writes.update_cycle(cycle.number, state=CycleState.PAIRED)

    def claim(self, cycle: Cycle, examples: Sequence[Example]) -> tuple[Cycle, Batch]:
        hashes = [example.content_hash for example in examples]
        refuse_twice(hashes)
        with self._claiming(cycle, hashes), self._write() as writes:
            stored = writes.require_state(cycle, CycleState.PAIRED)
            checks.check_policy(stored, examples)
            recorded = history.cycle_examples(writes.connection, self._run_id, cycle.number)
            checks.check_examples(stored, hashes, recorded)
            spending.spend(writes, cycle.number, self._held_out)
            writes.claim(cycle.number, ClaimKind.EXAMPLE, hashes)
            spent = batch_hash(stored.parent_version, hashes)
            updated = writes.update_cycle(cycle.number, state=CycleState.CLAIMED, batch_hash=spent)
            adjusted = watching.adjustments(writes.connection, self._run_id, cycle.number)
        return updated, Batch(cycle.number, stored.parent_version, spent, tuple(examples), adjustments=adjusted)

    def record_step(self, cycle: Cycle, report: StepReport) -> Cycle:
        with self._write() as writes:
            stored = writes.require_state(cycle, CycleState.CLAIMED)
            batch = history.cycle_examples(writes.connection, self._run_id, cycle.number)
            checks.check_report(stored, report, len(batch))
            writes.lr_change(cycle.number, report)
            writes.insert(tables.steps, rows.step_values(report), cycle=cycle.number)
            writes.example_logprobs(cycle.number, report.example_logprobs)
            return writes.update_cycle(cycle.number, state=CycleState.STEPPED)

    def record_published(self, cycle: Cycle, checkpoint: Checkpoint) -> Cycle:
        candidate = replace(checkpoint, state=CheckpointState.CANDIDATE)
        with self._write() as writes:
            checks.check_published(writes.require_state(cycle, CycleState.STEPPED), candidate)
            writes.insert(tables.checkpoints, rows.checkpoint_values(candidate))
            state = CycleState.PUBLISHED
            return writes.update_cycle(cycle.number, state=state, candidate_version=candidate.version)

    def record_probes(self, version: str, runs: Sequence[ProbeRun], cycle: Cycle | None) -> None:
        with self._write() as writes:
            watching_writes.record_runs(writes, version, runs, _number(cycle))

    def record_engine_check(self, check: EngineCheck, engine: str, cycle: Cycle | None) -> None:
        with self._write() as writes:
            values = rows.engine_check_values(check, engine)
            writes.insert(tables.engine_checks, values | {"cycle": _number(cycle)})

    def probed(self, cycle: Cycle) -> Cycle:
        with self._write() as writes:
            writes.require_state(cycle, CycleState.PUBLISHED)
            return writes.update_cycle(cycle.number, state=CycleState.PROBED)

    def promote(self, cycle: Cycle, verdict: Verdict) -> Outcome:
        if verdict.regressed:
            raise DreamdError(f"cycle {cycle.number}: a verdict to roll back cannot promote")
        with self._write() as writes:
            stored = writes.require_state(cycle, CycleState.PROBED)
            writes.require_head(stored.parent_version)
            writes.verdict(cycle.number, verdict)
            writes.set_checkpoint(stored.candidate_version, CheckpointState.PROMOTED)
            writes.update_run(head_version=stored.candidate_version)
            return writes.finish(cycle.number, Outcome.PROMOTED, verdict.reason)

    def roll_back(self, cycle: Cycle, verdict: Verdict, target: Checkpoint) -> Rollback:
        if not verdict.regressed:
            raise DreamdError(f"cycle {cycle.number}: a verdict to promote cannot roll back")
        with self._write() as writes:
            stored = writes.require_state(cycle, CycleState.PROBED)
            assert stored.candidate_version is not None
            writes.require_head(stored.parent_version)
            ancestors = history.ancestry(writes.connection, self._run_id, stored.parent_version)
            checks.check_target(stored, verdict, target, ancestors)
            writes.verdict(cycle.number, verdict)
            writes.set_checkpoint(stored.candidate_version, CheckpointState.REJECTED)
            near_duplicates.quarantine(writes.connection, self._run_id, cycle.number)
            watching_writes.rest_families(writes, cycle.number, self._rest_cycles)
            writes.finish(cycle.number, Outcome.ROLLED_BACK, verdict.reason)
            return writes.move_head(
                RollbackCause.WATCHDOG,
                cycle.number,
                stored.candidate_version,
                target.version,
                verdict.reason,
                verdict.evidence,
            )

    def roll_back_head(self, target: Checkpoint, reason: str) -> Rollback:
        with self._write() as writes:
            writes.require_idle()
            head = history.head_version(writes.connection, self._run_id)
            stored = history.checkpoint(writes.connection, self._run_id, target.version)
            checks.check_operator_target(head, stored)
            return writes.move_head(RollbackCause.OPERATOR, None, head, stored.version, reason, {})

    def rollback_verified(self, rollback: Rollback, evidence: Mapping[str, Any]) -> None:
        with self._write() as writes:
            writes.rollback_verified(rollback.id, evidence)

    def close(self, cycle: Cycle, outcome: Outcome, reason: str) -> Outcome:
        with self._claiming(cycle, ()), self._write() as writes:
            stored = writes.cycle(cycle.number)
            checks.check_closing(stored, outcome)
            if outcome is Outcome.SKIPPED:
                spending.spend(writes, cycle.number, self._held_out)
            elif outcome in spending.NOT_KEPT:
                near_duplicates.quarantine(writes.connection, self._run_id, cycle.number)
            if stored.candidate_version is not None:
                writes.set_checkpoint(stored.candidate_version, CheckpointState.REJECTED)
            return writes.finish(cycle.number, outcome, reason)

    def record_seconds(self, cycle: Cycle, seconds: Mapping[str, float]) -> None:
        with self._write() as writes:
            writes.add_seconds(cycle.number, seconds)

    def pruned(self, version: str) -> None:
        with self._write() as writes:
            stored = history.checkpoint(writes.connection, self._run_id, version)
            if version == history.head_version(writes.connection, self._run_id):
                raise DreamdError(f"checkpoint {version} is the head: its files must stay")
            if stored.state in (CheckpointState.BASE, CheckpointState.CANDIDATE):
                raise DreamdError(f"checkpoint {version} is {stored.state}: its files must stay")
            writes.set_checkpoint(version, CheckpointState.PRUNED, pruned_after=writes.last_finished())

    def event(self, name: str, *, level: str = "info", cycle: Cycle | None = None, **payload: Any) -> None:
        with self._write() as writes:
            writes.event(name, level, _number(cycle), payload)

    def _read(
        self,
        query: Callable[Concatenate[Connection, int, Arguments], Answer],
        *args: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Answer:
        """What `query` finds of this run, in a transaction of its own."""
        with reading(self._engine) as connection:
            return query(connection, self._run_id, *args, **named)

    @contextmanager
    def _write(self) -> Iterator[Writes]:
        """A transaction that holds the run's row and is refused when another ledger took the run over."""
        runs = tables.runs
        with writing(self._engine) as connection:
            epoch = connection.scalar(sa.select(runs.c.epoch).where(runs.c.id == self._run_id).with_for_update())
            if epoch != self.epoch:
                raise FencedError(
                    f"run {self.run_name}: another dreamd took it over (epoch {epoch}, this one has {self.epoch}); "
                    "nothing was written"
                )
            yield Writes(connection, self._run_id)

    @contextmanager
    def _claiming(self, cycle: Cycle, hashes: Sequence[str]) -> Iterator[None]:
        """Say who has a hash that the unique key refused, once the transaction is rolled back."""
        try:
            yield
        except DatabaseError as error:
            if not isinstance(error.__cause__, sa.exc.IntegrityError):
                raise
            with reading(self._engine) as connection:
                planned = Writes(connection, self._run_id).scenario_hashes(cycle.number)
                found = already_claimed(connection, self._run_id, (*planned, *hashes))
            raise (found or error) from error.__cause__


def _number(cycle: Cycle | None) -> int | None:
    return None if cycle is None else cycle.number
