"""Inside the child: end its process group with SIGKILL at a named point."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from harness import RecordingObserver

from daemon.domain.records import Cycle
from daemon.ports import ProgressCallback


def die() -> None:
    """Nothing runs after this: no handler, no `finally`, no flush."""
    os.killpg(0, signal.SIGKILL)


class Trap:
    """Counts how often its point is passed, and kills at the occurrence that was asked for."""

    def __init__(self, point: str, count: int, delay_s: float) -> None:
        self._point = point
        self._left = count
        self._delay_s = delay_s

    def passed(self, point: str) -> None:
        if point != self._point:
            return
        self._left -= 1
        if self._left == 0:
            if self._delay_s:
                threading.Thread(target=self._die_later, daemon=True).start()
            else:
                die()

    def _die_later(self) -> None:
        time.sleep(self._delay_s)
        die()


class TrappedObserver(RecordingObserver):
    """Mirrors the `Observer` port; every state, stage and log line is a point."""

    def __init__(self, trap: Trap) -> None:
        super().__init__()
        self._trap = trap

    @contextmanager
    def stage(self, cycle: Cycle | None, name: str) -> Iterator[ProgressCallback]:
        self._trap.passed(f"stage:{name}")
        with super().stage(cycle, name) as progress:
            yield progress

    def committed(self, cycle: Cycle) -> None:
        self._trap.passed(f"state:{cycle.state}")

    def log(self, event: str, **fields: Any) -> None:
        self._trap.passed(f"log:{event}")


def watch_operations(trap: Trap) -> None:
    """From now on each fsync, rename, and deletion of a file or directory in this process is a point.

    fsync: before it; rename: after it (the new name is there, what follows is not); deletion: before each, so that
    pruning stops halfway.
    """
    _wrap(trap, "fsync", "fsync", after=False)
    _wrap(trap, "rename", "rename", after=True)
    _wrap(trap, "replace", "rename", after=True)
    _wrap(trap, "unlink", "unlink", after=False)
    _wrap(trap, "rmdir", "unlink", after=False)


def _wrap(trap: Trap, name: str, point: str, *, after: bool) -> None:
    """Everything in the process looks these up in `os` when it calls them: pathlib, shutil, dreamd."""
    original: Callable[..., Any] = getattr(os, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not after:
            trap.passed(point)
        result = original(*args, **kwargs)
        if after:
            trap.passed(point)
        return result

    setattr(os, name, wrapped)
