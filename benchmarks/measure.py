"""Time and peak memory of one call, inside the process that makes it (Linux: /proc/self)."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Measured:
    """One step. The memory is that of the whole process."""

    loss: float
    seconds: float
    resting_bytes: int | None = None
    """Resident before the step: libraries, weights, optimizer state. None where memory was not asked for."""
    peak_bytes: int | None = None
    """Most that was resident during the step."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Seconds by part, where the peer tells."""


Step = Callable[[], tuple[float, Mapping[str, float]]]
"""Does the step; returns its loss and its seconds by part."""


@dataclass(frozen=True, slots=True)
class OptimizerFigures:
    """One optimizer on every weight of the model at once."""

    name: str
    state_bytes: int
    seconds: float
    """Median of one step."""


def timed(step: Step) -> Measured:
    """Run `step` and take its wall time."""
    started = time.perf_counter()
    loss, parts = step()
    return Measured(loss, time.perf_counter() - started, parts=parts)


def with_memory(step: Step) -> Measured:
    """Run `step` and take its peak memory too; slower, since every page it needs is new to the process.

    Raises:
        OSError: this kernel cannot reset a process's peak.
    """
    give_freed_memory_back()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from the present VmRSS
    resting = _status_bytes("VmRSS")
    measured = timed(step)
    return replace(measured, resting_bytes=resting, peak_bytes=_status_bytes("VmHWM"))


def give_freed_memory_back() -> None:
    """Without this, what an earlier step freed still counts as resident where the allocator keeps it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
