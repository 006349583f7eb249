from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.config.watching import BreakerConfig
from daemon.domain.records import Adjustments
from daemon.domain.states import BreakerState, Outcome
from daemon.domain.verdicts import Breaker, CycleRecord
from daemon.ports import BreakerPolicy
from daemon.watchdog.breaker import RollbackBreaker

NOW = datetime(2026, 11, 22, 21, 10, tzinfo=UTC)
POLICY: BreakerPolicy = RollbackBreaker(BreakerConfig())
CLOSED = Breaker(BreakerState.CLOSED, "never changed", 0)
LETTERS = {
    "P": Outcome.PROMOTED,
    "R": Outcome.ROLLED_BACK,
    "S": Outcome.SKIPPED,
    "A": Outcome.ABANDONED,
    "L": Outcome.LOST,
    "F": Outcome.FAILED,
}


def cycles(outcomes: str, first: int = 1) -> tuple[CycleRecord, ...]:
    """A record per letter of `LETTERS`."""
    return tuple(CycleRecord(first + i, LETTERS[letter], "") for i, letter in enumerate(outcomes))


def opened(num_openings: int = 1, since_cycle: int = 2) -> Breaker:
    return Breaker(BreakerState.OPEN, "too many", since_cycle, num_openings, NOW)


def trial(num_openings: int = 1, since_cycle: int = 2) -> Breaker:
    return Breaker(BreakerState.HALF_OPEN, "a trial", since_cycle, num_openings)


def test_two_rollbacks_in_a_row_open_it_with_a_sentence() -> None:
    """Cycles 41 and 42 rolled back: open for the hour of `backoff_s`, and the sentence says which cycles and how long.

    21:10 plus 3600 s is 22:10.
    """
    found = POLICY.next(CLOSED, cycles("PRR", first=40), NOW)
    assert found == Breaker(
        BreakerState.OPEN,
        "2 rollbacks in a row, cycles 41 and 42; waiting until 2026-11-22 22:10 UTC "
        "or `dreamd breaker ack --reason TEXT`",
        since_cycle=42,
        num_openings=1,
        until=NOW + timedelta(hours=1),
        evidence={"cycles": [41, 42], "backoff_s": 3600.0},
    )


@pytest.mark.parametrize("between", ["S", "A", "SA", "L", "F", "LFS"])
def test_cycles_that_say_nothing_do_not_break_a_row(between: str) -> None:
    """Skipped, abandoned, lost and failed cycles between two rollbacks neither count nor break the row."""
    assert POLICY.next(CLOSED, cycles(f"R{between}R"), NOW).state is BreakerState.OPEN


@pytest.mark.parametrize("outcomes", ["", "R", "RP", "RPR", "RPRP", "PPPP", "LFLFLF", "RLFLF", "PR" + "S" * 9])
def test_it_stays_closed_and_is_the_same_object(outcomes: str) -> None:
    """One rollback, a promoted cycle between two, or only cycles that say nothing: nothing changes."""
    assert POLICY.next(CLOSED, cycles(outcomes), NOW) is CLOSED


def test_three_rollbacks_in_the_window_open_it() -> None:
    """Three rollbacks among the last 20 finished cycles open it, promoted ones between or not, and it says so."""
    found = POLICY.next(CLOSED, cycles("P" * 10 + "RPPPRPPPPRP"), NOW)
    assert found.state is BreakerState.OPEN
    assert found.reason.startswith("3 rollbacks in the last 20 cycles, cycles 11, 15 and 20; waiting until")
    assert found.evidence["cycles"] == [11, 15, 20]


def test_the_window_forgets() -> None:
    """With the first of three rollbacks 21 cycles ago there are two in the window: it stays closed."""
    records = cycles("RPPPRPPPPR" + "P" * 11)
    assert len(records) == 21
    assert POLICY.next(CLOSED, records, NOW) is CLOSED
    assert POLICY.next(CLOSED, records[:20], NOW).state is BreakerState.OPEN


def test_rollbacks_before_the_last_change_do_not_count() -> None:
    """After it closed in cycle 2, the rollbacks of cycles 1 and 2 are settled: one more does not open it again."""
    closed = Breaker(BreakerState.CLOSED, "the trial was promoted", 2)
    assert POLICY.next(closed, cycles("RRR"), NOW) is closed
    assert POLICY.next(closed, cycles("RRRR"), NOW).evidence["cycles"] == [3, 4]


def test_open_waits_for_its_back_off() -> None:
    """A second before `until` it is the same object; at `until` it is half open, and no opening is forgotten."""
    assert POLICY.next(opened(3), (), NOW - timedelta(seconds=1)).state is BreakerState.OPEN
    found = POLICY.next(opened(3), (), NOW)
    assert (found.state, found.since_cycle, found.num_openings, found.acknowledged) == (
        BreakerState.HALF_OPEN,
        2,
        3,
        False,
    )
    assert found.reason.startswith("the back-off ended at 2026-11-22 21:10 UTC; the next cycle is a trial at 0.25 x")


def test_a_promoted_trial_closes_it() -> None:
    """The first promoted cycle after half open closes the breaker, and the back-off starts over at the next opening."""
    found = POLICY.next(trial(4), cycles("SP", first=3), NOW)
    assert (found.state, found.since_cycle, found.num_openings) == (BreakerState.CLOSED, 4, 0)
    assert found.reason == "the trial, cycle 4, was promoted"


@pytest.mark.parametrize(("num_openings", "hours"), [(1, 2), (2, 4), (3, 8), (4, 16), (5, 24), (9, 24), (5000, 24)])
def test_a_rolled_back_trial_doubles_the_back_off(num_openings: int, hours: int) -> None:
    """Each opening in a row waits twice as long as the one before, to `max_backoff_s` (24 hours)."""
    found = POLICY.next(trial(num_openings), cycles("R", first=3), NOW)
    assert (found.state, found.num_openings) == (BreakerState.OPEN, num_openings + 1)
    assert found.until == NOW + timedelta(hours=hours)
    assert found.reason.startswith("the trial, cycle 3, was rolled back; waiting until")


@pytest.mark.parametrize("outcomes", ["", "S", "F", "L", "A", "SFLA"])
def test_a_trial_without_a_verdict_is_tried_again(outcomes: str) -> None:
    """A trial that was skipped, failed, lost or abandoned decides nothing: still half open, the same object."""
    breaker = trial()
    assert POLICY.next(breaker, cycles(outcomes, first=3), NOW) is breaker


def test_only_a_trial_is_gentler() -> None:
    """Half open: a quarter of whatever learning rate the governor asks for; closed and open: nothing changes."""
    asked = Adjustments(lr_factor=0.5, favour="coding")
    assert POLICY.adjust(trial(), asked) == Adjustments(lr_factor=0.125, favour="coding")
    assert POLICY.adjust(CLOSED, asked) is asked
    assert POLICY.adjust(opened(), asked) is asked


@given(st.text("PRSALF", max_size=60), st.lists(st.integers(0, 7200), max_size=60))
def test_asking_again_changes_nothing(outcomes: str, waits: list[int]) -> None:
    """After any run, a restart that asks with the same rows and time gets the same object: no second opening.

    Also: it is OPEN only with a moment to end, num_openings is 0 exactly when closed, and since_cycle never falls.
    """
    breaker, now = CLOSED, NOW
    for number in range(1, len(outcomes) + 1):
        now += timedelta(seconds=waits[number - 1] if number <= len(waits) else 60)
        records = cycles(outcomes[:number])
        found = POLICY.next(breaker, records, now)
        assert POLICY.next(breaker, records, now) == found
        assert POLICY.next(found, records, now) is found
        assert (found.until is not None) == (found.state is BreakerState.OPEN)
        assert (found.num_openings == 0) == (found.state is BreakerState.CLOSED)
        assert breaker.since_cycle <= found.since_cycle <= number
        breaker = found
