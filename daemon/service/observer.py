"""What the outside sees of a cycle at work: log lines, the status line, progress, and the way in for a stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

import structlog

from daemon.domain.errors import StopRequested
from daemon.domain.records import Cycle
from daemon.ports import ProgressCallback
from daemon.service.notify import Notifier
from daemon.service.stop import StopFlag

INTERRUPTIBLE: Final = frozenset(
    {"load trainer", "load engine", "sample", "sweep", "judge", "probe", "confirm", "anchor", "engine"}
)
"""Stages that a stop may break off: nothing is spent yet, or what they measure is measured at the next start.

Every other stage (claim, step, publish, ...) runs to its end, so that what was spent is not lost.
"""

CYCLE_FINISHED: Final = "cycle_finished"
"""The canonical event at the end of each cycle."""


class ProgressSink(Protocol):
    """Shows how far a stage is."""

    def start(self, stage: str) -> None: ...
    def update(self, done: int, total: int) -> None: ...
    def finish(self) -> None: ...


class NoProgress:
    """For services: progress is in the logs and the status line."""

    def start(self, stage: str) -> None: ...
    def update(self, done: int, total: int) -> None: ...
    def finish(self) -> None: ...


class ServiceObserver:
    """`ports.Observer` of the running daemon.

    Args:
        on_cycle_finished: called with the cycle's number after `cycle_finished` is logged, in the worker thread.
    """

    def __init__(
        self,
        stop: StopFlag,
        notifier: Notifier,
        progress: ProgressSink,
        *,
        on_cycle_finished: Callable[[int], None] | None = None,
    ) -> None:
        self._stop = stop
        self._notifier = notifier
        self._progress = progress
        self._on_cycle_finished = on_cycle_finished
        self._cycle_number: int | None = None
        self._log = structlog.get_logger("daemon")

    @contextmanager
    def stage(self, cycle: Cycle | None, name: str) -> Iterator[ProgressCallback]:
        """Log the stage with its seconds, show its progress; interruptible ones give way to a stop."""
        interruptible = name in INTERRUPTIBLE
        if interruptible:
            self._stop.check()
        self._bind(cycle)
        with structlog.contextvars.bound_contextvars(stage=name):
            self._notifier.status(_status(cycle, name))
            self._notifier.alive()
            self._log.info("stage_started")
            self._progress.start(name)
            started = time.monotonic()
            try:
                yield self._callback(interruptible)
            except StopRequested:
                self._log.info("stage_stopped", seconds=_since(started))
                raise
            except BaseException as error:
                self._log.error("stage_failed", seconds=_since(started), error=type(error).__name__, reason=str(error))
                raise
            else:
                self._log.info("stage_finished", seconds=_since(started))
            finally:
                self._progress.finish()

    def committed(self, cycle: Cycle) -> None:
        self._notifier.alive()
        self._bind(cycle)
        self._log.info("state_committed", state=str(cycle.state))

    def check_stop(self) -> None:
        self._notifier.alive()
        self._stop.check()

    def log(self, event: str, **fields: Any) -> None:
        number = fields.get("cycle", self._cycle_number)
        level = str(fields.pop("level", "info"))
        getattr(self._log, level)(event, **fields)
        if event == CYCLE_FINISHED and number is not None and self._on_cycle_finished is not None:
            self._on_cycle_finished(int(number))

    def _callback(self, interruptible: bool) -> ProgressCallback:
        def progress(done: int, total: int) -> None:
            self._notifier.alive()
            if interruptible:
                self._stop.check()
            self._progress.update(done, total)

        return progress

    def _bind(self, cycle: Cycle | None) -> None:
        """Put the cycle's number on every line from here on; bound once per cycle and thread."""
        number = None if cycle is None else cycle.number
        if structlog.contextvars.get_contextvars().get("cycle") == number:
            return
        self._cycle_number = number
        if number is None:
            structlog.contextvars.unbind_contextvars("cycle")
        else:
            structlog.contextvars.bind_contextvars(cycle=number)


def _status(cycle: Cycle | None, stage: str) -> str:
    if cycle is None:
        return f"starting: {stage}"
    return f"cycle {cycle.number}: {stage}; {cycle.state}; head {cycle.parent_version}"


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)
