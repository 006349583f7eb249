"""The loop: one cycle after the other, all of them in one worker thread, under APScheduler.

The main thread only waits, so that signals are handled at once while a stage sits in native code. A cycle
arms its successor when it ends: cycles cannot overlap, and a slow one is followed by one cycle, not by all
those it made late.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from queue import Empty, SimpleQueue
from typing import Protocol

import structlog
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from daemon.domain.errors import StopRequested
from daemon.domain.states import Outcome
from daemon.service.notify import Notifier
from daemon.service.stop import StopFlag

log = structlog.get_logger("daemon.service")


MAX_DEAF_S = 1.0
"""Longest time that a signal may go unnoticed."""


class Pause(Protocol):
    """No cycle may run now; `cycle.guard.Pause`."""

    @property
    def seconds(self) -> float:
        """Until it is worth asking again."""

    @property
    def reason(self) -> str:
        """Why not."""

    @property
    def error(self) -> type[Exception]:
        """Raised with the reason where waiting is no answer."""


class Service:
    """Runs `setup`, then cycles until a stop, an error or `max_cycles`, then `teardown`; one thread for all three.

    Args:
        run_cycle: one dream cycle, or the seconds to wait because none may run now, with the reason. `StopRequested`
            ends the loop cleanly; any other exception ends it and is raised from `run`.
        interval_s: from one cycle's start to the next, at least; 0: back to back.
        max_cycles: cycles to finish; None: for ever. With a number, a wait ends the loop with the pause's error.
        setup: run first. A stop or an error in it ends the loop like one in a cycle.
        teardown: run last, also after a `setup` that failed halfway.
        notifier: told STOPPING when the loop is about to end, and while it waits that it is alive.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        run_cycle: Callable[[], Outcome | Pause],
        stop: StopFlag,
        interval_s: float,
        max_cycles: int | None,
        *,
        setup: Callable[[], None] = lambda: None,
        teardown: Callable[[], None] = lambda: None,
        notifier: Notifier | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_cycle = run_cycle
        self._stop = stop
        self._interval_s = interval_s
        self._max_cycles = max_cycles
        self._setup = setup
        self._teardown = teardown
        self._notifier = notifier or Notifier(None)
        self._clock = clock
        self._num_finished = 0
        self._started_setup = False
        self._ending = False
        self._due = 0.0
        self._failure: BaseException | None = None
        self._wake: SimpleQueue[str] = SimpleQueue()  # its put() is re-entrant: a signal handler may call it
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": ThreadPoolExecutor(max_workers=1)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )

    def run(self) -> int:
        """Block until the loop ends; returns the number of cycles that finished. Call it from the main thread.

        Raises:
            Exception: what `setup`, a cycle or `teardown` raised, the first of them.
            KeyboardInterrupt: a second SIGINT; the worker thread may still be at work, so end with `os._exit`.
        """
        self._scheduler.start()
        self._arm(0.0)
        self._stop.on_request(lambda: self._wake.put("stop"))
        # A second SIGINT raises anywhere in this loop, perhaps inside one of the scheduler's locks. So nothing of the
        # scheduler is touched on that way out: its thread and the worker's end with the process.
        while self._next_word() == "stop":
            log.info("stop_requested", reason=self._stop.reason)
            self._notifier.stopping()
            # Queued behind the cycle that is running: the worker thread takes one job at a time.
            self._scheduler.add_job(self._finish)
        self._notifier.stopping()
        self._scheduler.remove_all_jobs()
        self._scheduler.shutdown(wait=True)
        if self._failure is not None:
            raise self._failure
        return self._num_finished

    def _next_word(self) -> str:
        """Wait for one, and say meanwhile that all is well, as long as nothing is due: work says so itself."""
        while True:
            try:
                # Never without end: a signal that comes right before the wait is only handled after it.
                return self._wake.get(timeout=min(MAX_DEAF_S, self._notifier.alive_every_s or MAX_DEAF_S))
            except Empty:
                if self._clock() < self._due:
                    self._notifier.alive()

    def _tick(self) -> None:
        """One cycle, in the worker thread; the first also runs `setup`."""
        if self._ending:
            return
        started = self._clock()
        pause: Pause | None = None
        try:
            if not self._started_setup:
                self._started_setup = True
                self._setup()
            if self._max_cycles is None or self._num_finished < self._max_cycles:
                self._stop.check()
                result = self._run_cycle()
                if isinstance(result, Outcome):
                    self._num_finished += 1
                else:
                    pause = self._pause(result)
            if self._stop.is_set or (self._max_cycles is not None and self._num_finished >= self._max_cycles):
                self._ending = True
        except StopRequested:
            self._ending = True
        except BaseException as failure:  # noqa: BLE001 - carried to the caller's thread, where `run` raises it
            self._failure = failure
            self._ending = True
        if self._ending:
            self._finish()
        elif pause is not None:
            self._arm(pause.seconds)
        else:
            self._arm(max(0.0, self._interval_s - (self._clock() - started)))

    def _pause(self, pause: Pause) -> Pause:
        """Say that nothing is trained, and why.

        Raises:
            DreamdError: a fixed number of cycles was asked for, and they cannot run; the pause's own kind.
        """
        if self._max_cycles is not None:
            raise pause.error(f"nothing is trained: {pause.reason}")  # its own words end with the way out
        self._notifier.status(f"paused: {pause.reason}")
        return pause

    def _finish(self) -> None:
        """Tear down once, in the worker thread, and let `run` return."""
        self._ending = True
        try:
            if self._started_setup:
                self._started_setup = False
                self._teardown()
        except BaseException as failure:  # noqa: BLE001 - the first failure is the cause; this one is said with it
            if self._failure is None:
                self._failure = failure
            else:
                self._failure.add_note(f"and the teardown failed: {failure!r}")
        self._wake.put("done")

    def _arm(self, delay_s: float) -> None:
        self._due = self._clock() + delay_s
        # A new job each time, not the old one again: this one still counts as running, and as due to be removed.
        self._scheduler.add_job(self._tick, "date", run_date=datetime.now(UTC) + timedelta(seconds=delay_s))
