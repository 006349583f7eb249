"""May the next cycle train? The circuit breaker, brought up to date before each cycle; and is there room?"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from daemon.cycle.measuring import evaluate_head, make_live, measure_anchors
from daemon.cycle.retain import retain
from daemon.cycle.stages import Stages
from daemon.domain.errors import BreakerOpenError, DiskError, DreamdError
from daemon.domain.states import BreakerState

MAX_PAUSE_S = 30.0
"""Longest pause before the database is asked again whether an operator has acknowledged."""

_EVENTS = {
    BreakerState.OPEN: "breaker_opened",
    BreakerState.HALF_OPEN: "breaker_half_open",
    BreakerState.CLOSED: "breaker_closed",
}

_WINDOW = 200
"""Finished cycles since the last change that the breaker looks at: the largest window it can be given."""


@dataclass(frozen=True, slots=True)
class Pause:
    """No cycle now."""

    seconds: float
    """Until it is worth asking again."""
    reason: str
    error: type[DreamdError] = BreakerOpenError
    """Raised instead of waiting, where a fixed number of cycles was asked for."""


def before_cycle(stages: Stages, now: datetime) -> Pause | None:
    """Bring breaker and anchors up to date; a pause when the breaker is open.

    Everything is decided from committed rows, so a kill anywhere in here changes nothing but the time.

    Args:
        now: with its time zone.
    """
    ledger = stages.ledger
    known = ledger.breaker()
    breaker = stages.breaker.next(known, ledger.records(_WINDOW, known.since_cycle), now)
    if breaker != known:
        if breaker.state is BreakerState.OPEN:
            evaluate_head(stages)  # before the row: a kill in here opens and evaluates again
        ledger.change_breaker(breaker)
        level = "error" if breaker.state is BreakerState.OPEN else "warning"
        stages.observer.log(_EVENTS[breaker.state], level=level, reason=breaker.reason)
    if breaker.state is not BreakerState.OPEN:
        measure_anchors(stages)
        make_live(stages, ledger.head())  # an anchor may have been live for its measurement
        return _no_room(stages)
    left = MAX_PAUSE_S if breaker.until is None else (breaker.until - now).total_seconds()
    return Pause(min(MAX_PAUSE_S, max(0.0, left)), f"the circuit breaker is open: {breaker.reason}")


def _no_room(stages: Stages) -> Pause | None:
    head = stages.ledger.head()
    try:
        stages.store.check_room(head)
    except DiskError:
        retain(stages)  # settings may be others now; or it could not be done when it was due
    try:
        stages.store.check_room(head)
    except DiskError as error:  # no row: the database may be on the same disk
        stages.observer.log("no_room", level="error", reason=str(error))
        return Pause(MAX_PAUSE_S, str(error), DiskError)
    return None
