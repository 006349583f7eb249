"""Domain records to table rows and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row

from daemon.domain.diversity import Diversity
from daemon.domain.probing import ProbeResult
from daemon.domain.records import (
    Checkpoint,
    Completion,
    Cycle,
    EngineCheck,
    Example,
    Message,
    Refusal,
    Scenario,
    SourceRead,
    StepReport,
)
from daemon.domain.states import (
    CheckpointKind,
    CheckpointState,
    ChosenSource,
    CycleState,
    ExampleKind,
    Outcome,
    RefusalReason,
    Side,
    Source,
)
from daemon.domain.verdicts import Rollback

AnyRow = Row[Any]
Values = dict[str, Any]

REFUSED_TEXT = 300
"""Characters kept of what was refused."""

_STEP_FIELDS = (
    "objective",
    "optimizer",
    "lr",
    "loss",
    "nll",
    "odds_loss",
    "chosen_logprob",
    "rejected_logprob",
    "log_odds",
    "margin",
    "grad_norm",
    "update_rms",
    "num_examples",
    "num_pairs",
    "num_tokens",
    "phase",
    "precision",
    "update_cosine",
    "bf16_changed",
    "peak_memory_bytes",
    "reference_version",
)


def now() -> datetime:
    """For people to read: order and durations never come from this clock."""
    return datetime.now(UTC)


def cycle_of(row: AnyRow) -> Cycle:
    return Cycle(
        number=row.number,
        seed=row.seed,
        parent_version=row.parent_version,
        state=CycleState(row.state),
        outcome=None if row.outcome is None else Outcome(row.outcome),
        reason=row.reason,
        batch_hash=row.batch_hash,
        candidate_version=row.candidate_version,
    )


def checkpoint_of(row: AnyRow) -> Checkpoint:
    return Checkpoint(
        version=row.version,
        cycle_number=row.cycle,
        parent_version=row.parent_version,
        batch_hash=row.batch_hash,
        root_hash=row.root_hash,
        weights_digest=row.weights_digest,
        optimizer_digest=row.optimizer_digest,
        size_bytes=row.size_bytes,
        state=CheckpointState(row.state),
        kind=CheckpointKind(row.kind),
        image_digest=row.image_digest,
        image_bytes=row.image_bytes,
        chain_length=row.chain_length,
        exact=row.exact,
        pinned=row.pinned_at is not None,
    )


def checkpoint_values(checkpoint: Checkpoint) -> Values:
    """A new checkpoint's row; it is pinned by `upkeep.pin` alone, which knows why."""
    return {
        "version": checkpoint.version,
        "cycle": checkpoint.cycle_number,
        "parent_version": checkpoint.parent_version,
        "batch_hash": checkpoint.batch_hash,
        "root_hash": checkpoint.root_hash,
        "weights_digest": checkpoint.weights_digest,
        "optimizer_digest": checkpoint.optimizer_digest,
        "size_bytes": checkpoint.size_bytes,
        "state": checkpoint.state,
        "kind": checkpoint.kind,
        "image_digest": checkpoint.image_digest,
        "image_bytes": checkpoint.image_bytes,
        "chain_length": checkpoint.chain_length,
        "exact": checkpoint.exact,
        "created_at": now(),
    }


def scenario_values(position: int, scenario: Scenario) -> Values:
    return {
        "position": position,
        "content_hash": scenario.content_hash,
        "side": scenario.side,
        "family": scenario.family,
        "pack": scenario.pack,
        "template": scenario.template,
        "messages": [{"role": message.role, "content": message.content} for message in scenario.messages],
        "guidance": scenario.guidance,
        "target": scenario.target,
        "rule": list(scenario.rule),
        "source": scenario.source,
        "num_constraints": scenario.num_constraints,
        "provenance": scenario.provenance,
        "evidence": scenario.evidence,
    }


def scenario_of(row: AnyRow) -> Scenario:
    return Scenario(
        content_hash=row.content_hash,
        side=Side(row.side),
        family=row.family,
        pack=row.pack,
        template=row.template,
        messages=tuple(Message(message["role"], message["content"]) for message in row.messages),
        guidance=row.guidance,
        target=row.target,
        rule=tuple(row.rule),
        source=Source(row.source),
        num_constraints=row.num_constraints,
        provenance=row.provenance,
        evidence=row.evidence,
    )


def refusal_values(refusal: Refusal) -> Values:
    secret = refusal.reason is RefusalReason.SECRET
    return {
        "source": refusal.source,
        "pack": refusal.pack,
        "reason": refusal.reason,
        "detail": refusal.detail,
        "provenance": refusal.provenance,
        "text": "" if secret else refusal.text[:REFUSED_TEXT],
        "at": now(),
    }


def read_values(read: SourceRead) -> Values:
    return asdict(read) | {"counts": dict(read.counts), "used": False}


def diversity_values(diversity: Diversity) -> Values:
    return asdict(diversity) | {"general_share": diversity.general_share}


def completion_values(completion: Completion) -> Values:
    return {
        "ordinal": completion.ordinal,
        "scenario_hash": completion.scenario_hash,
        "kind": completion.kind,
        "temperature": completion.temperature,
        "seed": completion.seed,
        "sample": completion.sample,
        "policy_version": completion.policy_version,
        "prompt_token_ids": completion.prompt_token_ids,
        "token_ids": completion.token_ids,
        "text": completion.text,
        "mean_logprob": completion.mean_logprob,
        "finish_reason": completion.finish_reason,
    }


def example_values(position: int, example: Example) -> Values:
    return {
        "position": position,
        "content_hash": example.content_hash,
        "scenario_hash": example.scenario_hash,
        "side": example.side,
        "kind": example.kind,
        "chosen_source": example.chosen_source,
        "policy_version": example.policy_version,
        "prompt_token_ids": example.prompt_token_ids,
        "chosen_token_ids": example.chosen_token_ids,
        "chosen_text": example.chosen_text,
        "chosen_ordinal": example.chosen_ordinal,
        "rejected_token_ids": example.rejected_token_ids,
        "rejected_text": example.rejected_text,
        "rejected_ordinal": example.rejected_ordinal,
    }


def example_of(row: AnyRow) -> Example:
    return Example(
        content_hash=row.content_hash,
        scenario_hash=row.scenario_hash,
        side=Side(row.side),
        kind=ExampleKind(row.kind),
        chosen_source=ChosenSource(row.chosen_source),
        policy_version=row.policy_version,
        prompt_token_ids=tuple(row.prompt_token_ids),
        chosen_token_ids=tuple(row.chosen_token_ids),
        chosen_text=row.chosen_text,
        chosen_ordinal=row.chosen_ordinal,
        rejected_token_ids=tuple(row.rejected_token_ids),
        rejected_text=row.rejected_text,
        rejected_ordinal=row.rejected_ordinal,
    )


def step_values(report: StepReport) -> Values:
    values = {name: getattr(report, name) for name in _STEP_FIELDS}
    return values | {
        "update_cosine": finite_or_none(report.update_cosine),
        "bf16_changed": finite_or_none(report.bf16_changed),
        "update_rms_over_lr": report.update_rms_over_lr,
        "seconds": report.seconds,
        "recorded_at": now(),
    }


def step_of(row: AnyRow, examples: Sequence[AnyRow]) -> StepReport:
    """`examples` are the batch's rows in order; those of a step without per-example numbers have none."""
    numbers = tuple((example.chosen_logprob, example.rejected_logprob) for example in examples)
    recorded = all(chosen is not None for chosen, _ in numbers)
    return StepReport(
        **{name: getattr(row, name) for name in _STEP_FIELDS},
        seconds=row.seconds,
        example_logprobs=numbers if recorded else (),
    )


def probe_values(result: ProbeResult) -> Values:
    return {
        "probe": result.probe,
        "item": result.item,
        "value": result.value,
        "passed": result.passed,
        "detail": result.detail,
    }


def probe_of(row: AnyRow) -> ProbeResult:
    return ProbeResult(row.probe, row.item, row.value, row.passed, row.detail)


def engine_check_values(check: EngineCheck, engine: str) -> Values:
    return {
        "policy_version": check.policy_version,
        "engine": engine,
        "mean_abs_diff": finite_or_none(check.mean_abs_diff),
        "max_abs_diff": finite_or_none(check.max_abs_diff),
        "num_tokens": check.num_tokens,
        "tolerance": check.tolerance,
        "weights_match": check.weights_match,
        "passed": check.passed,
        "checked_at": now(),
    }


def rollback_of(row: AnyRow) -> Rollback:
    return Rollback(row.id, row.cycle, row.from_version, row.to_version, row.verified_at is not None)


def finite_or_none(value: float | None) -> float | None:
    """NaN and infinities are NULL in every column: the two databases treat them differently."""
    # A comparison with NaN is false, so this needs no import and rejects all three.
    return value if value is not None and abs(value) < float("inf") else None
