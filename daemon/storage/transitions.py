"""The transactions of a cycle, statement by statement. `ledger` runs each as a whole, fenced.

What a stage hands over and what the rows say must agree, or nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from daemon.domain.diversity import Diversity
from daemon.domain.errors import DreamdError
from daemon.domain.hashing import batch_hash
from daemon.domain.records import (
    Adjustments,
    Batch,
    Checkpoint,
    Completion,
    Cycle,
    Draw,
    Example,
    Judgement,
    StepReport,
)
from daemon.domain.states import CheckpointState, CycleState, Outcome, RollbackCause
from daemon.domain.verdicts import GovernorDecision, Rollback, Verdict
from daemon.storage import checks, history, near_duplicates, rows, spending, tables, watching, watching_writes
from daemon.storage.held_out_texts import HeldOutTexts
from daemon.storage.kinds import ClaimKind
from daemon.storage.writes import Writes


def register_base(writes: Writes, run_name: str, base: Checkpoint) -> None:
    known = history.all_checkpoints(writes.connection, writes.run_id)
    if not known:
        writes.insert(tables.checkpoints, rows.checkpoint_values(base))
        writes.update_run(head_version=base.version)
    elif _identity(known[0]) != _identity(base):
        raise DreamdError(f"run {run_name} has another base already: {known[0].version}")


def open_cycle(
    writes: Writes,
    head: Checkpoint,
    run_seed: int,
    run_name: str,
    epoch: int,
    config: Mapping[str, Any],
    adjustments: Adjustments,
    decisions: Sequence[GovernorDecision],
) -> Cycle:
    writes.require_idle()
    writes.require_head(head.version)
    writes.require_seed(run_seed, run_name)
    return watching_writes.open_cycle(writes, head, run_seed, epoch, config, adjustments, decisions)


def record_plan(writes: Writes, cycle: Cycle, draw: Draw) -> Cycle:
    stored = writes.require_state(cycle, CycleState.PLANNED)
    if writes.scenario_hashes(cycle.number):
        raise DreamdError(f"cycle {cycle.number} has its scenarios already")
    writes.plan(cycle.number, draw)
    return stored


def record_sweep(writes: Writes, cycle: Cycle, completions: Sequence[Completion]) -> Cycle:
    checks.check_policy(writes.require_state(cycle, CycleState.PLANNED), completions)
    swept = [rows.completion_values(completion) for completion in completions]
    writes.insert(tables.completions, *swept, cycle=cycle.number)
    return writes.update_cycle(cycle.number, state=CycleState.SWEPT)


def record_pairs(
    writes: Writes,
    cycle: Cycle,
    judgements: Sequence[Judgement],
    examples: Sequence[Example],
    diversity: Diversity,
) -> Cycle:
    writes.require_state(cycle, CycleState.SWEPT)
    writes.judge(cycle.number, judgements)
    paired = [rows.example_values(position, example) for position, example in enumerate(examples)]
    writes.insert(tables.examples, *paired, cycle=cycle.number)
    writes.insert(tables.batch_diversity, rows.diversity_values(diversity), cycle=cycle.number)
    return writes.update_cycle(cycle.number, state=CycleState.PAIRED)


def claim(writes: Writes, cycle: Cycle, examples: Sequence[Example], held_out: HeldOutTexts) -> tuple[Cycle, Batch]:
    hashes = [example.content_hash for example in examples]
    stored = writes.require_state(cycle, CycleState.PAIRED)
    checks.check_policy(stored, examples)
    checks.check_examples(stored, hashes, history.cycle_examples(writes.connection, writes.run_id, cycle.number))
    spending.spend(writes, cycle.number, held_out)
    writes.claim(cycle.number, ClaimKind.EXAMPLE, hashes)
    spent = batch_hash(stored.parent_version, hashes)
    updated = writes.update_cycle(cycle.number, state=CycleState.CLAIMED, batch_hash=spent)
    adjusted = watching.adjustments(writes.connection, writes.run_id, cycle.number)
    return updated, Batch(cycle.number, stored.parent_version, spent, tuple(examples), adjustments=adjusted)


def record_step(writes: Writes, cycle: Cycle, report: StepReport) -> Cycle:
    stored = writes.require_state(cycle, CycleState.CLAIMED)
    batch = history.cycle_examples(writes.connection, writes.run_id, cycle.number)
    checks.check_report(stored, report, len(batch))
    writes.lr_change(cycle.number, report)
    writes.insert(tables.steps, rows.step_values(report), cycle=cycle.number)
    writes.example_logprobs(cycle.number, report.example_logprobs)
    return writes.update_cycle(cycle.number, state=CycleState.STEPPED)


def record_published(writes: Writes, cycle: Cycle, checkpoint: Checkpoint) -> Cycle:
    candidate = replace(checkpoint, state=CheckpointState.CANDIDATE)
    checks.check_published(writes.require_state(cycle, CycleState.STEPPED), candidate)
    writes.insert(tables.checkpoints, rows.checkpoint_values(candidate))
    return writes.update_cycle(cycle.number, state=CycleState.PUBLISHED, candidate_version=candidate.version)


def probed(writes: Writes, cycle: Cycle) -> Cycle:
    writes.require_state(cycle, CycleState.PUBLISHED)
    return writes.update_cycle(cycle.number, state=CycleState.PROBED)


def promote(writes: Writes, cycle: Cycle, verdict: Verdict) -> Outcome:
    stored = writes.require_state(cycle, CycleState.PROBED)
    writes.require_head(stored.parent_version)
    writes.verdict(cycle.number, verdict)
    writes.set_checkpoint(stored.candidate_version, CheckpointState.PROMOTED)
    writes.update_run(head_version=stored.candidate_version)
    return writes.finish(cycle.number, Outcome.PROMOTED, verdict.reason)


def roll_back(writes: Writes, cycle: Cycle, verdict: Verdict, target: Checkpoint, rest_cycles: int) -> Rollback:
    stored = writes.require_state(cycle, CycleState.PROBED)
    assert stored.candidate_version is not None
    writes.require_head(stored.parent_version)
    ancestors = history.ancestry(writes.connection, writes.run_id, stored.parent_version)
    checks.check_target(stored, verdict, target, ancestors)
    writes.verdict(cycle.number, verdict)
    writes.set_checkpoint(stored.candidate_version, CheckpointState.REJECTED)
    near_duplicates.quarantine(writes.connection, writes.run_id, cycle.number)
    watching_writes.rest_families(writes, cycle.number, rest_cycles)
    writes.finish(cycle.number, Outcome.ROLLED_BACK, verdict.reason)
    cause, left = RollbackCause.WATCHDOG, stored.candidate_version
    return writes.move_head(cause, cycle.number, left, target.version, verdict.reason, verdict.evidence)


def roll_back_head(writes: Writes, target: Checkpoint, reason: str) -> Rollback:
    writes.require_idle()
    head = history.head_version(writes.connection, writes.run_id)
    stored = history.checkpoint(writes.connection, writes.run_id, target.version)
    checks.check_operator_target(head, stored)
    return writes.move_head(RollbackCause.OPERATOR, None, head, stored.version, reason, {})


def close(writes: Writes, cycle: Cycle, outcome: Outcome, reason: str, held_out: HeldOutTexts) -> Outcome:
    stored = writes.cycle(cycle.number)
    checks.check_closing(stored, outcome)
    if outcome is Outcome.SKIPPED:
        spending.spend(writes, cycle.number, held_out)
    elif outcome in spending.NOT_KEPT:
        near_duplicates.quarantine(writes.connection, writes.run_id, cycle.number)
    if stored.candidate_version is not None:
        writes.set_checkpoint(stored.candidate_version, CheckpointState.REJECTED)
    return writes.finish(cycle.number, outcome, reason)


def _identity(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What stays the same however a checkpoint is stored or pinned."""
    return checkpoint.version, checkpoint.root_hash, checkpoint.weights_digest, checkpoint.optimizer_digest
