from __future__ import annotations

import math
import random

from watchdog_records import STEP, history, results

from daemon.config.watching import WatchdogConfig
from daemon.domain.verdicts import Evidence
from daemon.watchdog import Watchdog, gates

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


def _chosen(restlessness: float, num_cycles: int, seed: int, drift: float = 0.0) -> list[float]:
    """Mean held-out chosen log-probability of 12 answers: wanders back to its mean by a tenth a cycle, and drifts.

    A clean run steps by 0.0037: 0.447 times the deviation of the mean, 0.0083 (0.006 shared, 0.02 of each answer).
    """
    source = random.Random(seed)
    deviation = restlessness * math.hypot(0.006, 0.02 / math.sqrt(12))
    wandering = deviation * source.gauss(0.0, 1.0)
    series = []
    for number in range(num_cycles):
        series.append(-2.66 + wandering + drift * number)
        wandering = 0.9 * wandering + math.sqrt(1 - 0.9**2) * deviation * source.gauss(0.0, 1.0)
    return series


def _caught(series: list[float]) -> list[int]:
    """Cycles at which the shipped gate says that the chosen answers fall."""
    config = WatchdogConfig()
    limits = (config.chosen_falling_cycles, config.chosen_falling_total)
    return [
        n
        for n in range(1, len(series))
        if gates.chosen_falling_gate(series[max(0, n - 20) : n], series[n], *limits).tripped
    ]


def test_restless_chosen_answers_are_not_called_falling() -> None:
    """2.5 times as restless as a clean run, 12 answers, 20,000 cycles: less than 0.3 in 1000 are refused."""
    false = len(_caught(_chosen(2.5, 20_000, seed=23)))
    print(f"false refusals for falling chosen answers: {false} in 20,000 restless cycles")
    assert false < 6


def test_chosen_answers_that_fall_are_caught_by_the_sixth_cycle() -> None:
    """0.02 nats less in every cycle, 200 runs: each is refused by the sixth cycle, nine in ten by the fifth."""
    first = [_caught(_chosen(1.0, 12, seed, drift=-0.02))[0] for seed in range(200)]
    assert max(first) <= 6 and sum(found <= 5 for found in first) >= 180
