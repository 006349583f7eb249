"""Breaker, adjustments and governor in words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from daemon.cli.watching import (
    adjusted,
    breaker_line,
    breaker_next,
    change_of,
    moment,
    stays_open,
    until_of,
    warning_of,
)

NOW = datetime(2026, 11, 22, 22, 0, tzinfo=UTC)


def breaker(state: str = "open", **changes: Any) -> dict[str, Any]:
    """A row as `queries.breaker` returns it."""
    row = {"cycle": 42, "state": state, "reason": "2 rollbacks in a row", "until": NOW.isoformat()}
    return row | changes


def test_a_closed_breaker_is_no_warning() -> None:
    """Neither is one that was never asked."""
    assert warning_of(breaker("closed")) is None
    assert warning_of(None) is None
    assert breaker_line({"cycle": 0, "state": "closed", "reason": ""}) == "CLOSED"


@pytest.mark.parametrize(("state", "word"), [("open", "OPEN"), ("half_open", "HALF-OPEN")])
def test_an_open_one_is_a_warning_with_cycle_and_reason(state: str, word: str) -> None:
    """And it names the command that says more."""
    warning = warning_of(breaker(state))
    assert warning == f"WARNING: breaker {word} since cycle 42: 2 rollbacks in a row (`dreamd breaker status`)"


def test_every_state_says_what_comes_next() -> None:
    """Until when nothing is trained, what the trial decides, or that all is well."""
    assert breaker_next(breaker(), 0.25) == (
        "nothing is trained until 2026-11-22 22:00 UTC; then the next cycle is a trial at 0.25 of the learning rate. "
        "When the cause is understood, `dreamd breaker ack --reason TEXT` has it tried at once"
    )
    assert breaker_next(breaker("half_open"), 0.5) == (
        "the next cycle is a trial at 0.5 of the learning rate: promoted closes the breaker, rolled back opens it again"
    )
    assert breaker_next(breaker("closed"), 0.25) == "training goes on"


def test_times_are_in_utc_to_the_minute() -> None:
    """Whatever time zone and precision they are stored with; no time is none."""
    assert moment("2026-11-22T23:10:05.123456+01:00") == "2026-11-22 22:10 UTC"
    assert moment(None) is None


def test_it_stays_open_until_its_back_off_ends() -> None:
    """At the very moment it does not any more; without an end only a person opens the way."""
    assert stays_open(breaker(), NOW - timedelta(seconds=1))
    assert not stays_open(breaker(), NOW)
    assert stays_open(breaker(until=None), NOW)
    assert not stays_open(breaker("half_open"), NOW - timedelta(seconds=1))


def test_adjustments_name_what_they_change() -> None:
    """Every field of `Adjustments` in words; nothing changed is nothing said."""
    assert adjusted(None) == adjusted({}) == ""
    every = {
        "lr_factor": 0.5,
        "orpo_weight_factor": 0.25,
        "objective": "dpop",
        "scenarios_factor": 2.0,
        "general_fraction": 0.4,
        "favour": "coding",
        "probe_factor": 2.0,
    }
    assert adjusted(every) == (
        "lr x 0.5, orpo_weight x 0.25, scenarios per cycle x 2, probes' share x 2, objective dpop, "
        "general share at least 40 %, coding first among the general scenarios"
    )


def test_the_breakers_part_of_the_learning_rate_is_told_from_the_governors() -> None:
    """A trial at a quarter of an already halved rate is x 0.125, of which x 0.25 is the breaker's."""
    assert adjusted({"lr_factor": 0.125, "probe_factor": 2.0}, 0.25) == (
        "lr x 0.125 (x 0.25 of it is the breaker's trial), probes' share x 2"
    )


@pytest.mark.parametrize(
    ("knob", "before", "after", "says"),
    [
        ("lr", 1.0, 0.5, "lr x 1 -> x 0.5"),
        ("general_fraction", 0.25, 0.4, "general_fraction 0.25 -> 0.4"),
        ("objective", "orpo", "dpop", "objective orpo -> dpop"),
        ("favour", None, "coding", "favour as configured -> coding"),
    ],
)
def test_a_decision_says_from_what_to_what(knob: str, before: Any, after: Any, says: str) -> None:
    """Factors are marked as such, and no value is the configured one."""
    assert change_of({"knob": knob, "from_value": before, "to_value": after}) == says


def test_a_decision_says_how_long_it_holds() -> None:
    """Its last cycle, or until another decision."""
    assert until_of({"until_cycle": 128}) == "cycle 128"
    assert until_of({"until_cycle": None}) == "changed again"
