"""Peak memory of a piece of work."""

from __future__ import annotations

import mmap

from daemon.training.memory import PeakMemory


def hold_and_free(mebibytes: int) -> None:
    """Fresh pages straight from the system: an allocator may serve an array from pages it already holds."""
    with mmap.mmap(-1, mebibytes * 2**20) as pages:
        for offset in range(0, len(pages), mmap.PAGESIZE):
            pages[offset] = 1


def test_the_peak_is_of_the_work_alone() -> None:
    """Memory that was held and freed during the work counts; what was freed before it does not."""
    hold_and_free(100)
    idle = PeakMemory("cpu")
    rest = idle.read()
    assert rest is not None, "Linux tells"
    working = PeakMemory("cpu")
    hold_and_free(64)
    peak = working.read()
    assert peak is not None
    assert 60 * 2**20 < peak - rest < 80 * 2**20
