"""The ledger: each state change of a cycle is one transaction, fenced by the run's epoch.

Every write locks the run's row first, so writers of one run go one after the other; then it compares the
epoch, then the cycle's state. `transitions` and `upkeep` say what is written; `fenced` survives a lost server.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from daemon.domain.diversity import Diversity
from daemon.domain.errors import AlreadyClaimedError, DatabaseError, DreamdError
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
from daemon.domain.states import CheckpointState, Outcome
from daemon.domain.upkeep import MirrorTask, Rehearsal, ScrubResult
from daemon.domain.verdicts import Breaker, CycleRecord, GovernorDecision, History, Rollback, Verdict
from daemon.storage import (
    cycle_records,
    history,
    rows,
    sources,
    spending,
    tables,
    transitions,
    upkeep,
    watching,
    watching_writes,
)
from daemon.storage.claims import already_claimed, refuse_twice
from daemon.storage.fenced import FencedRun
from daemon.storage.held_out_texts import HeldOutTexts
from daemon.storage.journal import append, complete, require_newer_database, spent_by
from daemon.storage.judged import comparison
from daemon.storage.lock import RunLock
from daemon.storage.runs import take_over
from daemon.storage.writes import Writes


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
        *,
        journal: Path | None = None,
        lock: RunLock | None = None,
    ) -> None:
        self._run = FencedRun(engine, run_id, run_name, epoch, lock)
        self._baked_after = baked_after
        self._rest_cycles = rest_cycles
        self._reference_items = reference_items
        self._journal = journal
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
        journal: Path | None = None,
        lock: RunLock | None = None,
    ) -> Self:
        """Take the run over: ledgers acquired earlier can write nothing from now on.

        Args:
            baked_after: `watchdog.baked_after`, later promoted cycles after which a checkpoint is an anchor.
            rest_cycles: `governor.rest_cycles`, that the families of a rolled-back cycle rest; 0: none.
            reference_items: `watchdog.reference_items`, that an anchor's failure rate is taken from.
            journal: the claims journal beside the checkpoints; None: claims are in the database alone.
            lock: the one that this process holds; it is taken again after a restart of the server.

        Raises:
            UsageError: there is no such run.
            ConfigError: the journal is another run's; nothing was taken over.
            RestoredBackupError: it knows what the database does not; nothing was taken over.
        """
        if journal is not None:
            require_newer_database(engine, run_name, journal)
        run = take_over(engine, run_name)
        ledger = cls(
            engine, run.id, run.name, run.epoch, baked_after, rest_cycles, reference_items, journal=journal, lock=lock
        )
        if journal is not None:
            complete(engine, run_name, journal)
        spending.complete_fingerprints(ledger._run.write)
        return ledger

    # reading

    def head(self) -> Checkpoint:
        return self._run.read(history.head)

    def checkpoint(self, version: str) -> Checkpoint:
        return self._run.read(history.checkpoint, version)

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        return self._run.read(history.all_checkpoints)

    def lineage(self) -> tuple[Checkpoint, ...]:
        return self._run.read(history.head_lineage)

    def refuse(self, scenarios: Sequence[Scenario]) -> Mapping[str, Refusal]:
        return self._run.read(spending.refusals, scenarios, self._held_out)

    def sources(self) -> tuple[ImportedSource, ...]:
        return self._run.read(sources.approved)

    def cycle(self, number: int) -> Cycle:
        return self._run.read(history.cycle, number)

    def unfinished(self) -> tuple[Cycle, ...]:
        return self._run.read(history.unfinished_cycles)

    def examples(self, cycle: Cycle) -> tuple[Example, ...]:
        return self._run.read(history.cycle_examples, cycle.number)

    def step_report(self, cycle: Cycle) -> StepReport:
        return self._run.read(history.step_report, cycle.number)

    def probe_results(self, version: str) -> tuple[ProbeResult, ...]:
        return self._run.read(history.results, version)

    def history(self, cycle: Cycle) -> History:
        return self._run.read(comparison, cycle, self._baked_after, self._reference_items)

    def probe_budget(self) -> ProbeBudget:
        return self._run.read(cycle_records.budget)

    def resting(self, cycle_number: int) -> Mapping[tuple[str, str], int]:
        found = self._run.read(watching.resting, cycle_number)
        return {(row["pack"], row["family"]): row["num_rollbacks"] for row in found}

    def records(self, limit: int, after_cycle: int = 0) -> tuple[CycleRecord, ...]:
        return self._run.read(cycle_records.records, limit, after_cycle)

    def governor_decisions(self) -> tuple[GovernorDecision, ...]:
        return self._run.read(watching.decisions)

    def breaker(self) -> Breaker:
        return self._run.read(watching.breaker)

    def adjustments(self, cycle: Cycle) -> Adjustments:
        return self._run.read(watching.adjustments, cycle.number)

    def next_cycle_number(self) -> int:
        return self._run.read(history.next_cycle_number)

    def pending_rollbacks(self) -> tuple[Rollback, ...]:
        return self._run.read(history.unverified_rollbacks)

    # writing

    def register_base(self, checkpoint: Checkpoint) -> None:
        """The base model as the run's first head. Registering the same base again changes nothing.

        Raises:
            DreamdError: it has a parent, or the run has another base.
        """
        base = replace(checkpoint, state=CheckpointState.BASE)
        if base.parent_version is not None or base.cycle_number is not None:
            raise DreamdError(f"checkpoint {base.version} came from a cycle: it is not a base")
        self._run.write(transitions.register_base, self.run_name, base)

    def open_cycle(
        self,
        *,
        head: Checkpoint,
        run_seed: int,
        config: Mapping[str, Any],
        adjustments: Adjustments = Adjustments(),  # noqa: B008 - frozen
        decisions: Sequence[GovernorDecision] = (),
    ) -> Cycle:
        return self._run.write(
            transitions.open_cycle, head, run_seed, self.run_name, self.epoch, config, adjustments, decisions
        )

    def change_breaker(self, breaker: Breaker) -> None:
        self._run.write(lambda writes: watching.change_breaker(writes.connection, writes.run_id, breaker))

    def record_plan(self, cycle: Cycle, draw: Draw) -> Cycle:
        return self._run.write(transitions.record_plan, cycle, draw)

    def record_sweep(self, cycle: Cycle, completions: Sequence[Completion]) -> Cycle:
        return self._run.write(transitions.record_sweep, cycle, completions)

    def record_pairs(
        self, cycle: Cycle, judgements: Sequence[Judgement], examples: Sequence[Example], diversity: Diversity
    ) -> Cycle:
        return self._run.write(transitions.record_pairs, cycle, judgements, examples, diversity)

    def claim(self, cycle: Cycle, examples: Sequence[Example]) -> tuple[Cycle, Batch]:
        hashes = [example.content_hash for example in examples]
        refuse_twice(hashes)
        with self._claiming(cycle, hashes):
            claimed = self._run.write(transitions.claim, cycle, examples, self._held_out)
        self._note_claims(cycle)
        return claimed

    def record_step(self, cycle: Cycle, report: StepReport) -> Cycle:
        return self._run.write(transitions.record_step, cycle, report)

    def record_published(self, cycle: Cycle, checkpoint: Checkpoint) -> Cycle:
        return self._run.write(transitions.record_published, cycle, checkpoint)

    def record_probes(self, version: str, runs: Sequence[ProbeRun], cycle: Cycle | None) -> None:
        self._run.write(watching_writes.record_runs, version, runs, _number(cycle))

    def record_engine_check(self, check: EngineCheck, engine: str, cycle: Cycle | None) -> None:
        values = rows.engine_check_values(check, engine) | {"cycle": _number(cycle)}
        self._run.write(Writes.insert, tables.engine_checks, values)

    def probed(self, cycle: Cycle) -> Cycle:
        return self._run.write(transitions.probed, cycle)

    def promote(self, cycle: Cycle, verdict: Verdict) -> Outcome:
        if verdict.regressed:
            raise DreamdError(f"cycle {cycle.number}: a verdict to roll back cannot promote")
        return self._run.write(transitions.promote, cycle, verdict)

    def roll_back(self, cycle: Cycle, verdict: Verdict, target: Checkpoint) -> Rollback:
        if not verdict.regressed:
            raise DreamdError(f"cycle {cycle.number}: a verdict to promote cannot roll back")
        return self._run.write(transitions.roll_back, cycle, verdict, target, self._rest_cycles)

    def roll_back_head(self, target: Checkpoint, reason: str) -> Rollback:
        return self._run.write(transitions.roll_back_head, target, reason)

    def rollback_verified(self, rollback: Rollback, evidence: Mapping[str, Any]) -> None:
        self._run.write(Writes.rollback_verified, rollback.id, evidence)

    def close(self, cycle: Cycle, outcome: Outcome, reason: str) -> Outcome:
        with self._claiming(cycle, ()):
            closed = self._run.write(transitions.close, cycle, outcome, reason, self._held_out)
        if outcome is Outcome.SKIPPED:
            self._note_claims(cycle)
        return closed

    def record_seconds(self, cycle: Cycle, seconds: Mapping[str, float]) -> None:
        self._run.write(Writes.add_seconds, cycle.number, seconds)

    def event(self, name: str, *, level: str = "info", cycle: Cycle | None = None, **payload: Any) -> None:
        self._run.write(Writes.event, name, level, _number(cycle), payload)

    # checkpoints and their upkeep

    def pruned(self, version: str) -> None:
        self._run.write(upkeep.pruned, version)

    def made_lossy(self, version: str) -> None:
        self._run.write(upkeep.made_lossy, version)

    def pin(self, version: str, reason: str) -> None:
        self._run.write(upkeep.pin, version, reason)

    def unpin(self, version: str) -> None:
        self._run.write(upkeep.unpin, version)

    def rollback_sides(self, num_cycles: int) -> frozenset[str]:
        return self._run.read(upkeep.rollback_sides, num_cycles)

    def enqueue_mirror(self, version: str) -> None:
        self._run.write(upkeep.enqueue_mirror, version)

    def mirror_tasks(self) -> tuple[MirrorTask, ...]:
        return self._run.read(upkeep.queued)

    def mirrored(self, version: str) -> None:
        self._run.write(upkeep.mirrored, version)

    def mirror_failed(self, version: str, error: str, next_try_at: datetime) -> None:
        self._run.write(upkeep.mirror_failed, version, error, next_try_at)

    def wake_mirror(self, *, anew: bool) -> None:
        self._run.write(upkeep.wake_mirror, anew)

    def last_config(self) -> Mapping[str, Any] | None:
        return self._run.read(upkeep.last_config)

    def scrub_order(self) -> tuple[str, ...]:
        return self._run.read(upkeep.scrub_order)

    def record_scrub(self, result: ScrubResult) -> None:
        self._run.write(upkeep.record_scrub, result)

    def record_rehearsal(self, rehearsal: Rehearsal) -> None:
        self._run.write(upkeep.record_rehearsal, rehearsal)

    def last_rehearsal_at(self, *, passed: bool = False) -> datetime | None:
        return self._run.read(upkeep.last_rehearsal_at, passed)

    def _note_claims(self, cycle: Cycle) -> None:
        """Into the journal, once they are committed; a crash in between is made up for by `acquire`."""
        if self._journal is not None:
            append(self._journal, self.run_name, cycle.number, self._run.read(spent_by, cycle.number))

    @contextmanager
    def _claiming(self, cycle: Cycle, hashes: Sequence[str]) -> Iterator[None]:
        """Say who has a hash that the unique key refused, once the transaction is rolled back."""
        try:
            yield
        except DatabaseError as error:
            if not isinstance(error.__cause__, sa.exc.IntegrityError):
                raise
            found = self._run.read(_holder, cycle.number, hashes)
            raise (found or error) from error.__cause__


def _holder(connection: Connection, run_id: int, number: int, hashes: Sequence[str]) -> AlreadyClaimedError | None:
    planned = Writes(connection, run_id).scenario_hashes(number)
    return already_claimed(connection, run_id, (*planned, *hashes))


def _number(cycle: Cycle | None) -> int | None:
    return None if cycle is None else cycle.number
