"""Breaker, adjustments and governor in words, from what `storage.queries` returns."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from daemon.domain.states import BreakerState, Knob

Record = Mapping[str, Any]

_FACTORS = {
    "lr_factor": "lr",
    "orpo_weight_factor": "orpo_weight",
    "scenarios_factor": "scenarios per cycle",
    "probe_factor": "probes' share",
}
_RELATIVE = frozenset({Knob.LR, Knob.ORPO_WEIGHT, Knob.SCENARIOS, Knob.PROBES})
"""Knobs whose values are factors."""


def breaker_line(breaker: Record) -> str:
    """The state, since when, and why: "OPEN since cycle 42: 2 rollbacks in a row ..."."""
    state = str(breaker["state"]).replace("_", "-").upper()
    if not breaker["cycle"] and not breaker["reason"]:
        return state  # it never changed
    return f"{state} since cycle {breaker['cycle']}: {breaker['reason']}"


def breaker_next(breaker: Record, lr_factor: float) -> str:
    """What happens next, and what a person can do."""
    trial = f"the next cycle is a trial at {lr_factor:g} of the learning rate"
    match breaker["state"]:
        case BreakerState.OPEN:
            until = f" until {moment(breaker['until'])}" if breaker["until"] else ""
            return (
                f"nothing is trained{until}; then {trial}. When the cause is understood, "
                "`dreamd breaker ack --reason TEXT` has it tried at once"
            )
        case BreakerState.HALF_OPEN:
            return f"{trial}: promoted closes the breaker, rolled back opens it again"
        case _:
            return "training goes on"


def moment(iso: str | None) -> str | None:
    """A stored time as the breaker's own sentences write it: "2026-11-22 22:10 UTC"; None: never."""
    return None if iso is None else f"{datetime.fromisoformat(iso).astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def stays_open(breaker: Record, now: datetime) -> bool:
    """Whether nothing may be trained at `now` (with its time zone): the breaker is open, and its back-off goes on."""
    if breaker["state"] != BreakerState.OPEN:
        return False
    return breaker["until"] is None or datetime.fromisoformat(breaker["until"]) > now


def warning_of(breaker: Record | None) -> str | None:
    """A line for the top of what a person reads; None while the breaker is closed."""
    if breaker is None or breaker["state"] == BreakerState.CLOSED:
        return None
    return f"WARNING: breaker {breaker_line(breaker)} (`dreamd breaker status`)"


def adjusted(adjustments: Record | None, breaker_lr_factor: float | None = None) -> str:
    """What governor and breaker changed of a cycle: "lr x 0.5, general share at least 40 %"; empty: nothing.

    Args:
        breaker_lr_factor: how much of the learning rate's factor is the breaker's, in a trial cycle.
    """
    found = dict(adjustments or {})
    parts = [f"{words} x {found[key]:g}" for key, words in _FACTORS.items() if found.get(key) is not None]
    if breaker_lr_factor is not None and found.get("lr_factor") is not None:
        parts[0] += f" (x {breaker_lr_factor:g} of it is the breaker's trial)"
    if found.get("objective"):
        parts.append(f"objective {found['objective']}")
    if found.get("general_fraction") is not None:
        parts.append(f"general share at least {100 * found['general_fraction']:.0f} %")
    if found.get("favour"):
        parts.append(f"{found['favour']} first among the general scenarios")
    return ", ".join(parts)


def change_of(decision: Record) -> str:
    """A decision's change: "lr x 1 -> x 0.5"."""
    knob = decision["knob"]
    return f"{knob} {_value(knob, decision['from_value'])} -> {_value(knob, decision['to_value'])}"


def until_of(decision: Record) -> str:
    """The last cycle that a decision holds for."""
    return "changed again" if decision["until_cycle"] is None else f"cycle {decision['until_cycle']}"


def effect_of(decision: Record) -> str:
    """Whether a decision changes anything."""
    return "applied" if decision["applied"] else "advice"


def _value(knob: str, value: str | float | None) -> str:
    if value is None:
        return "as configured"
    number = f"{value:g}" if isinstance(value, int | float) else str(value)
    return f"x {number}" if knob in _RELATIVE else number
