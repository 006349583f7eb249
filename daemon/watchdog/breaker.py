"""The circuit breaker: too many rollbacks stop the training, one careful trial cycle starts it again.

CLOSED --rollbacks in a row, or in a window--> OPEN --back-off over, or an operator--> HALF_OPEN
  ^                                             ^                                          |
  |                                             `--------- trial rolled back --------------|
  `--------------------------------------------- trial promoted ---------------------------'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from daemon.config.watching import BreakerConfig
from daemon.domain.records import Adjustments
from daemon.domain.states import BreakerState, Outcome
from daemon.domain.verdicts import Breaker, CycleRecord

_MOST_DOUBLINGS = 30
"""2**30 back-offs are over 30 years even for one second; more would only overflow."""


class RollbackBreaker:
    """Implements `ports.BreakerPolicy`: rows and the time in, state out."""

    def __init__(self, config: BreakerConfig) -> None:
        self._config = config

    def next(self, breaker: Breaker, records: Sequence[CycleRecord], now: datetime) -> Breaker:
        """The state now; `breaker` itself when nothing changed, so asking twice changes nothing.

        Only promoted cycles end a row of rollbacks, and only promoted or rolled-back ones decide a trial: the
        others say nothing about the policy.

        Args:
            records: finished cycles, oldest first; those up to `breaker.since_cycle` are ignored.
            now: with a time zone.
        """
        new = [record for record in records if record.number > breaker.since_cycle]
        if breaker.state is BreakerState.CLOSED:
            return self._closed(breaker, new, now)
        if breaker.state is BreakerState.OPEN:
            return self._open(breaker, new, now)
        return self._half_open(breaker, new, now)

    def adjust(self, breaker: Breaker, adjustments: Adjustments) -> Adjustments:
        """`adjustments`, with a lower learning rate in a trial cycle."""
        if breaker.state is not BreakerState.HALF_OPEN:
            return adjustments
        return replace(adjustments, lr_factor=adjustments.lr_factor * self._config.lr_factor)

    def _closed(self, breaker: Breaker, records: Sequence[CycleRecord], now: datetime) -> Breaker:
        config = self._config
        row, window = _row(records), _rolled_back(records[-config.window_cycles :])
        if len(row) >= config.max_in_a_row:
            what = f"{_count(row)} in a row, {_cycles(row)}"
            return self._opened(breaker, row, what, records, now)
        if len(window) >= config.max_in_window:
            what = f"{_count(window)} in the last {min(len(records), config.window_cycles)} cycles, {_cycles(window)}"
            return self._opened(breaker, window, what, records, now)
        return breaker

    def _open(self, breaker: Breaker, records: Sequence[CycleRecord], now: datetime) -> Breaker:
        if breaker.until is None or now < breaker.until:
            return breaker
        return Breaker(
            BreakerState.HALF_OPEN,
            f"the back-off ended at {_moment(breaker.until)}; the next cycle is a trial at "
            f"{self._config.lr_factor:g} x the learning rate",
            _last(breaker, records),
            breaker.num_openings,
            evidence={"waited_until": breaker.until.isoformat(), "lr_factor": self._config.lr_factor},
        )

    def _half_open(self, breaker: Breaker, records: Sequence[CycleRecord], now: datetime) -> Breaker:
        decisive = (r for r in records if r.outcome in (Outcome.PROMOTED, Outcome.ROLLED_BACK))
        trial = next(decisive, None)
        if trial is None:
            return breaker
        if trial.outcome is Outcome.ROLLED_BACK:
            what = f"the trial, cycle {trial.number}, was rolled back"
            return self._opened(breaker, [trial.number], what, records, now)
        return Breaker(
            BreakerState.CLOSED,
            f"the trial, cycle {trial.number}, was promoted",
            _last(breaker, records),
            evidence={"cycles": [trial.number]},
        )

    def _opened(
        self, breaker: Breaker, cycles: Sequence[int], what: str, records: Sequence[CycleRecord], now: datetime
    ) -> Breaker:
        num_openings = breaker.num_openings + 1
        doublings = min(num_openings - 1, _MOST_DOUBLINGS)
        backoff_s = min(self._config.backoff_s * 2.0**doublings, self._config.max_backoff_s)
        until = now + timedelta(seconds=backoff_s)
        return Breaker(
            BreakerState.OPEN,
            f"{what}; waiting until {_moment(until)} or `dreamd breaker ack --reason TEXT`",
            _last(breaker, records),
            num_openings,
            until,
            evidence={"cycles": list(cycles), "backoff_s": backoff_s},
        )


def _row(records: Sequence[CycleRecord]) -> list[int]:
    """Numbers of the rolled-back cycles since the last promoted one, oldest first."""
    promoted = [position for position, record in enumerate(records) if record.outcome is Outcome.PROMOTED]
    return _rolled_back(records[promoted[-1] :] if promoted else records)


def _rolled_back(records: Sequence[CycleRecord]) -> list[int]:
    return [record.number for record in records if record.outcome is Outcome.ROLLED_BACK]


def _last(breaker: Breaker, records: Sequence[CycleRecord]) -> int:
    return records[-1].number if records else breaker.since_cycle


def _count(cycles: Sequence[int]) -> str:
    return f"{len(cycles)} rollback" + ("s" if len(cycles) > 1 else "")


def _cycles(numbers: Sequence[int]) -> str:
    *most, last = map(str, numbers)
    return f"cycles {', '.join(most)} and {last}" if most else f"cycle {last}"


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
