"""The request to stop: set by a signal, read by whoever can give way."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from daemon.domain.errors import StopRequested


class StopFlag:
    """Set once, never cleared; safe to read from any thread.

    It takes no lock: `request` runs inside signal handlers, which interrupt the main thread anywhere, and a lock
    the main thread holds at that moment would never be released.
    """

    def __init__(self) -> None:
        self._reason: str | None = None
        self._interrupted = False
        self._listeners: list[Callable[[], None]] = []

    @property
    def is_set(self) -> bool:
        return self._reason is not None

    @property
    def reason(self) -> str | None:
        """Why, for instance "SIGTERM"; None while nobody asked."""
        return self._reason

    def request(self, reason: str) -> None:
        """Ask to stop; the first reason stays."""
        if self._reason is None:
            self._reason = reason
            for listener in tuple(self._listeners):
                listener()

    def check(self) -> None:
        """Raise `StopRequested` once a stop was asked for."""
        if self._reason is not None:
            raise StopRequested(self._reason)

    def on_request(self, listener: Callable[[], None]) -> None:
        """Call `listener` when a stop is asked for (at once if it was). It must be re-entrant: no locks, no I/O."""
        self._listeners.append(listener)
        if self._reason is not None:
            listener()

    @contextmanager
    def handle_signals(self) -> Iterator[StopFlag]:
        """SIGTERM and SIGINT set the flag; a second SIGINT raises `KeyboardInterrupt`. Main thread only."""
        previous = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
        self.request(signal.Signals(number).name)
