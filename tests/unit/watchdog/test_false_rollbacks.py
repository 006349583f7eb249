from __future__ import annotations

import random

from watchdog_records import STEP, history, results

from daemon.config.watching import WatchdogConfig
from daemon.domain.verdicts import Evidence
from daemon.watchdog import Watchdog

NUM_CYCLES = 1000
NUM_DOCUMENTS = 48
NOISE = 0.004
"""Standard deviation of one document's paired difference, nats per token."""


def _refused(shift: float, num_cycles: int, seed: int) -> int:
    """How many candidates are refused when each differs from its anchors by `shift` plus paired noise."""
    source = random.Random(seed)
    base_nll = [source.uniform(1.5, 4.5) for _ in range(NUM_DOCUMENTS)]
    anchor = results(base_nll)
    anchors = history(parent=anchor, baked=anchor, base=anchor)
    watchdog = Watchdog(WatchdogConfig())
    refused = 0
    for _ in range(num_cycles):
        now = results([value + shift + source.gauss(0.0, NOISE) for value in base_nll])
        refused += watchdog.judge(anchors, Evidence(STEP, now)).regressed
    return refused


def test_neutral_cycles_are_not_rolled_back() -> None:
    """1000 cycles that change nothing but noise: no rollback by margins."""
    refused = _refused(0.0, NUM_CYCLES, seed=20)
    print(f"false rollbacks by margins: {refused} in {NUM_CYCLES} neutral cycles ({NUM_DOCUMENTS} documents)")
    assert refused == 0


def test_the_margin_decides_not_the_noise() -> None:
    """At 0.007 nats nothing is refused, at 0.014 everything is: the band between is what 48 documents cannot tell."""
    inside, beyond = _refused(0.007, 100, seed=21), _refused(0.014, 100, seed=22)
    print(f"refused of 100: {inside} at +0.007 nats, {beyond} at +0.014 nats, margin 0.010")
    assert (inside, beyond) == (0, 100)
