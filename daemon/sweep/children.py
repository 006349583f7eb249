"""The processes that this one started, from /proc."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process; its start time tells it from a later one of the same number."""

    pid: int
    started: int


def descendants(pid: int) -> list[Process]:
    """Children of `pid`, their children, and so on, parents first; none on a system without /proc."""
    children: dict[int, list[Process]] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            # "PID (name) state ppid ...": the name may hold blanks and parentheses.
            fields = (directory / "stat").read_text(errors="replace").rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(Process(int(directory.name), int(fields[19])))
    found: list[Process] = list(children.get(pid, ()))
    for process in found:
        found += children.get(process.pid, ())
    return found


def kill(processes: Iterable[Process]) -> None:
    """SIGKILL, which also ends what is stopped; whoever is gone already is no error."""
    for process in processes:
        with contextlib.suppress(OSError):
            os.kill(process.pid, signal.SIGKILL)
