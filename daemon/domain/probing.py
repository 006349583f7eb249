"""Frozen records of held-out measurements: what is asked for, what came out, what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from daemon.domain.states import ProbeReason


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One held-out item, measured on one checkpoint."""

    probe: str
    """"nll", "accept", ...: docs/probes.md lists them."""
    item: str
    """Stable name of the held-out item."""
    value: float | None
    """The measurement; None when it was not a finite number."""
    passed: bool | None = None
    """For pass/fail probes; None there: it could not be judged."""
    detail: Mapping[str, Any] = field(default_factory=dict)


CONFIRMATION_SUFFIX = ".confirmation"
"""`accept.confirmation` is the probe `accept` on fresh prompts of the reserve."""


FAILED = "failed: "
"""How `ProbeRun.skipped` begins when measuring raised an error that nothing else depends on."""


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """A probe to be measured on the live policy."""

    probe: str
    reason: ProbeReason
    turn: int = 0
    """Which part of a rotating pool, from 0; probes with fixed items ignore it."""
    count: int | None = None
    """Items of a rotating pool; None: the probe's usual number."""


@dataclass(frozen=True, slots=True)
class ProbeRun:
    """One probe, measured once."""

    probe: str
    reason: ProbeReason
    turn: int
    suite_version: str
    """Hash of all the items that the probe can ask; results of another version are not comparable."""
    results: tuple[ProbeResult, ...]
    """A confirmation's have the probe's name with `CONFIRMATION_SUFFIX`."""
    seconds: float
    skipped: str | None = None
    """Why it could not be measured, or which part of it."""


@dataclass(frozen=True, slots=True)
class ProbeBudget:
    """What the schedule of probes goes by."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    """Probe -> seconds of its newest scheduled measurement."""
    last_cycle: Mapping[str, int] = field(default_factory=dict)
    """Probe -> the newest cycle in which it was measured."""
    cycle_seconds: float | None = None
    """Median seconds of the last 10 cycles that stepped, without their probes; None: there are none."""


@dataclass(frozen=True, slots=True)
class Span:
    """A conversation with its answer, and where in it the direction stands."""

    token_ids: tuple[int, ...]
    direction: tuple[int, int]
    """First token of the direction, and the one after its last."""
    response_start: int
    """First token of the answer."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What an `ports.Inspector` saw, item by item."""

    values: tuple[float | None, ...]
    """In the items' order; None: not a finite number. Empty where nothing could be read."""
    skipped: str | None = None
    """Why nothing, or not every layer, could be read."""


@dataclass(frozen=True, slots=True)
class SteeringReading:
    """The directions in which contrast pairs differ."""

    projections: Reading
    """Per pair: its activation difference projected onto the anchor's mean direction, in units of that mean's norm."""
    consistency: float | None
    """Mean pairwise cosine of the pairs' differences, -1 to 1."""
