"""Frozen records of the watchdog, the breaker and the governor: what they look at and what they decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from daemon.domain.probing import ProbeResult
from daemon.domain.records import StepReport
from daemon.domain.states import BreakerState, Decision, GovernorRule, Knob, Outcome, RollbackTarget


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was measured about one candidate."""

    step: StepReport
    results: tuple[ProbeResult, ...]


@dataclass(frozen=True, slots=True)
class Anchor:
    """A checkpoint of the parent's lineage that a rollback can go to."""

    version: str
    cycle_number: int
    """0 for the base."""
    depth: int
    """Promoted steps since the base."""


@dataclass(frozen=True, slots=True)
class PassCount:
    """Answers of a pass/fail probe that were judged."""

    failures: int
    num_items: int


@dataclass(frozen=True, slots=True)
class History:
    """What the watchdog compares a candidate with. Result tuples are those of a whole checkpoint."""

    parent: tuple[ProbeResult, ...]
    baked: tuple[ProbeResult, ...]
    """A1: the last baked checkpoint, or the base."""
    base: tuple[ProbeResult, ...]
    """A0: the pinned base."""
    update_rms_over_lr: tuple[float, ...] = ()
    """Of the promoted steps since the settings changed last, oldest first."""
    chosen_logp: tuple[float, ...] = ()
    """Mean held-out chosen log-probability of the ancestry over the candidate's items, oldest first, parent last."""
    batch_logprobs: tuple[tuple[float, float | None], ...] = ()
    """(chosen, rejected) mean log-probability of the same steps' batches."""
    batch_margins: tuple[float, ...] = ()
    """Mean over the pairs of chosen minus rejected log-probability, of those that had pairs."""
    push_back_margin: float | None = None
    """The same of the candidate's own push-back pairs; None with fewer than three."""
    push_back_margins: tuple[float, ...] = ()
    """Of the push-back pairs of the same steps' batches, of those that had three."""
    parent_anchor: Anchor = Anchor("parent", 1, 1)
    anchors: tuple[Anchor, ...] = (Anchor("base", 0, 0),)
    """Baked ancestors whose files are kept, newest first; the base is the last."""
    references: Mapping[str, Mapping[str, PassCount]] = field(default_factory=dict)
    """Pass/fail probe -> "base" and "baked" -> how often these failed.

    "base": every item of it that was measured. "baked": the pooled items of A1 and of as many ancestors before it as
    `watchdog.reference_items` takes (the base excluded); absent with fewer.
    """
    detectors: Mapping[str, Any] = field(default_factory=dict)
    """`evidence["detectors"]` of the verdict that promoted the parent; empty after a rollback, and on the base."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the watchdog decides, why, and the numbers it looked at."""

    decision: Decision
    reason: str
    target: RollbackTarget | None = None
    """Where to roll back to; None when promoting."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    to_version: str | None = None
    """The checkpoint that `target` names; None when promoting."""

    @property
    def regressed(self) -> bool:
        return self.decision is Decision.ROLL_BACK


@dataclass(frozen=True, slots=True)
class Suspicion:
    """The watchdog cannot decide yet: it wants fresh samples from the reserve."""

    probes: tuple[str, ...]
    reason: str
    num_items: int
    """Fresh prompts wanted of each probe."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A stored verdict, with everything that it rests on."""

    cycle_number: int
    candidate_version: str
    parent_version: str
    history: History
    evidence: Evidence
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Rollback:
    """One row of `rollbacks`."""

    id: int
    cycle_number: int | None
    from_version: str
    to_version: str
    verified: bool


@dataclass(frozen=True, slots=True)
class Breaker:
    """One row of `breaker_changes`: the state since then."""

    state: BreakerState
    reason: str
    since_cycle: int
    """The last cycle before the change; outcomes up to it do not count any more."""
    num_openings: int = 0
    """Openings in a row since the breaker was closed last: the back-off doubles with each."""
    until: datetime | None = None
    """OPEN: when the back-off ends (UTC)."""
    acknowledged: bool = False
    """HALF_OPEN because an operator said so."""
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GovernorDecision:
    """One change of one setting, with its reason."""

    cycle_number: int
    """The first cycle it holds for."""
    rule: GovernorRule
    knob: Knob
    from_value: str | float | None
    to_value: str | float | None
    until_cycle: int | None
    """The last cycle it holds for; None: until a later decision on the same knob."""
    reason: str
    """A sentence a person understands."""
    applied: bool
    """False: advice only."""
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CycleRecord:
    """What governor and breaker see of a finished cycle."""

    number: int
    outcome: Outcome
    reason: str
    lr: float | None = None
    """Of its step, if it made one."""
    means: Mapping[str, float] = field(default_factory=dict)
    """Probe -> mean value of its candidate over the probe's items."""
    differences: Mapping[str, float] = field(default_factory=dict)
    """Paired probe -> mean over items of the candidate's value minus the base's."""
    fell: tuple[str, ...] = ()
    """Rolled back: the probes in which it was worse (`evidence["fell"]` of its verdict)."""
