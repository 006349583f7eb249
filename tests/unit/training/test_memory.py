"""Peak memory of a piece of work."""

from __future__ import annotations

import numpy as np

from daemon.training.memory import PeakMemory


def test_the_peak_is_of_the_work_alone() -> None:
    """Memory that was held and freed during the work counts; what was freed before it does not."""
    before = np.ones(100 * 2**20, dtype=np.uint8)
    del before
    idle = PeakMemory("cpu")
    rest = idle.read()
    assert rest is not None, "Linux tells"
    working = PeakMemory("cpu")
    during = np.ones(64 * 2**20, dtype=np.uint8)
    del during
    peak = working.read()
    assert peak is not None
    assert 60 * 2**20 < peak - rest < 80 * 2**20
