"""Records of probes, breaker and governor to table rows and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from daemon.domain.probing import ProbeRun
from daemon.domain.records import Adjustments
from daemon.domain.states import BreakerState, Decision, GovernorRule, Knob, Objective, RollbackTarget
from daemon.domain.verdicts import Breaker, GovernorDecision, Verdict
from daemon.storage.rows import AnyRow, Values, finite_or_none, now


def probe_run_values(run: ProbeRun) -> Values:
    return {
        "probe": run.probe,
        "reason": run.reason,
        "turn": run.turn,
        "suite_version": run.suite_version,
        "num_items": len(run.results),
        "seconds": finite_or_none(run.seconds) or 0.0,
        "skipped": run.skipped,
        "measured_at": now(),
    }


def verdict_values(verdict: Verdict) -> Values:
    return {
        "decision": verdict.decision,
        "reason": verdict.reason,
        "target": verdict.target,
        "to_version": verdict.to_version,
        "evidence": verdict.evidence,
        "decided_at": now(),
    }


def verdict_of(row: AnyRow) -> Verdict:
    return Verdict(
        decision=Decision(row.decision),
        reason=row.reason,
        target=None if row.target is None else RollbackTarget(row.target),
        evidence=row.evidence,
        to_version=row.to_version,
    )


def adjustments_values(adjustments: Adjustments) -> Values | None:
    """What is not as usual; None when everything is."""
    usual = asdict(Adjustments())
    return {name: value for name, value in asdict(adjustments).items() if value != usual[name]} or None


def adjustments_of(stored: Mapping[str, Any] | None) -> Adjustments:
    values = dict(stored or {})
    if values.get("objective") is not None:
        values["objective"] = Objective(values["objective"])
    return Adjustments(**values)


def decision_values(decision: GovernorDecision) -> Values:
    return {
        "cycle": decision.cycle_number,
        "rule": decision.rule,
        "knob": decision.knob,
        "from_value": decision.from_value,
        "to_value": decision.to_value,
        "until_cycle": decision.until_cycle,
        "applied": decision.applied,
        "reason": decision.reason,
        "evidence": decision.evidence,
        "decided_at": now(),
    }


def decision_of(row: AnyRow) -> GovernorDecision:
    return GovernorDecision(
        cycle_number=row.cycle,
        rule=GovernorRule(row.rule),
        knob=Knob(row.knob),
        from_value=row.from_value,
        to_value=row.to_value,
        until_cycle=row.until_cycle,
        reason=row.reason,
        applied=row.applied,
        evidence=row.evidence,
    )


def breaker_values(breaker: Breaker) -> Values:
    return {
        "cycle": breaker.since_cycle,
        "state": breaker.state,
        "reason": breaker.reason,
        "num_openings": breaker.num_openings,
        "until": breaker.until,
        "acknowledged": breaker.acknowledged,
        "evidence": breaker.evidence,
    }


def breaker_of(row: AnyRow) -> Breaker:
    return Breaker(
        state=BreakerState(row.state),
        reason=row.reason,
        since_cycle=row.cycle,
        num_openings=row.num_openings,
        until=row.until,
        acknowledged=row.acknowledged,
        evidence=row.evidence,
    )
