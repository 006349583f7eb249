"""Names of the probes, and which side measures them."""

from __future__ import annotations

from collections.abc import Iterable

from daemon.domain.errors import PackError

NLL = "nll"
CHOSEN_LOGP = "chosen_logp"
SYCOPHANCY = "sycophancy"
DIRECTION_INFLUENCE = "direction_influence"
KL = "kl"
ATTENTION_SHIFT = "attention_shift"
STEERING = "steering"
STYLE = "style"

CORE_TRAINER = (NLL, CHOSEN_LOGP, SYCOPHANCY)
"""Fixed items, measured in every cycle; the watchdog decides by them before the engine gets a candidate."""
CORE_ENGINE = ("accept", "push_back")
"""Rotating pools, measured in every cycle; the watchdog decides by them."""
INTERNALS = (KL, ATTENTION_SHIFT, STEERING)
"""Fixed items, for which somebody has to look inside the policy."""
TRAINER = (*CORE_TRAINER, DIRECTION_INFLUENCE, *INTERNALS)
CONSISTENCY = "consistency"
"""The item of `steering` that is about all pairs together."""


def capabilities(pools: Iterable[str]) -> tuple[str, ...]:
    """The pools that are neither `accept` nor `push_back`, by name.

    Raises:
        PackError: one is named like a probe that is no pool.
    """
    found = tuple(sorted(set(pools) - set(CORE_ENGINE)))
    for name in found:
        if name in (*TRAINER, STYLE):
            raise PackError(f"a pack with held-out tasks cannot be called {name}, which is a probe; rename the pack")
    return found
