"""The governor's rules: each looks at a `Situation` and says what it would change. They know nothing of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from daemon.domain.probing import CONFIRMATION_SUFFIX
from daemon.domain.states import GovernorRule, Knob, Objective, Outcome
from daemon.domain.verdicts import CycleRecord, GovernorDecision
from daemon.watchdog.governor_situation import MOST_PROBES, Situation

WARMUP_STEPS = 20
"""Promoted steps before anything is raised: behaviour is not expected to move in the first ones."""
CHOSEN_FALL, CHOSEN_STEPS = 0.02, 5
"""Held-out chosen log-probability that falls by more than this (nats per token) over so many steps is falling.

Each is taken as the difference from the base on the items that both measured: a mean moves when the suite changes.
"""
_OVER = 2 / 3
"""A change is too large above its bound, and over below this share of it: between, nothing is decided."""

_PACKS = {
    "arithmetic": "arithmetic",
    "code": "coding",
    "reasoning": "reasoning",
    "nll:arithmetic": "arithmetic",
    "nll:code": "coding",
    "nll:prose": "writing",
    "nll:dialogue": "writing",
}
"""Probe -> the built-in pack whose general scenarios train what it measures."""


def after_rollback(now: Situation) -> list[GovernorDecision]:
    """The last cycle was rolled back: gentler, more general scenarios, a closer look, all for `hold_cycles`."""
    last = now.records[-1] if now.records else None
    if last is None or last.outcome is not Outcome.ROLLED_BACK or _is_answered(now, last):
        return []
    config = now.config
    until = now.cycle_number + config.hold_cycles - 1
    worse = f" (worse: {', '.join(last.fell)})" if last.fell else ""
    why = f"cycle {last.number} was rolled back{worse}"
    held = f"for cycles {now.cycle_number} to {until}"
    lr = now.bounded(Knob.LR, now.factor(Knob.LR) * 0.5)
    changes: list[tuple[Knob, str | float, str]] = [
        (Knob.LR, float(lr or 1.0), f"learning rate x {lr:g}"),
        (Knob.PROBES, MOST_PROBES, f"time for probes x {MOST_PROBES:g}"),
    ]
    if config.general_fraction > now.base.general_fraction:
        changes.append((Knob.GENERAL_FRACTION, config.general_fraction, f"{config.general_fraction:.0%} general"))
    pack = favoured_pack(last.fell, now.base.packs)
    if pack is not None:
        changes.append((Knob.FAVOUR, pack, f"general scenarios from the pack {pack} first"))
    evidence = {"cycle": last.number, "fell": list(last.fell)}
    return [
        now.decide(GovernorRule.AFTER_ROLLBACK, knob, value, f"{why}: {what} {held}", evidence, until_cycle=until)
        for knob, value, what in changes
    ]


def chosen_falling(now: Situation) -> list[GovernorDecision]:
    """The chosen answers become less likely: a larger share for the NLL, then an objective that forbids it."""
    earlier = now.newest_of(GovernorRule.CHOSEN_FALLING)
    if earlier is not None and now.cycle_number - earlier.cycle_number < now.config.hold_cycles:
        return []
    # The fall that an earlier decision answered must not count again: only what fell from its parent on.
    found = _chosen_fall(now, 0 if earlier is None else earlier.cycle_number - 1)
    if found is None:
        return []
    why, evidence = found
    objective = now.value(Knob.OBJECTIVE) or now.base.objective
    if objective == Objective.ORPO and now.factor(Knob.ORPO_WEIGHT) == 1.0:
        what = f"odds-ratio weight x 0.5, {now.base.orpo_weight * 0.5:g} instead of {now.base.orpo_weight:g}"
        return [now.decide(GovernorRule.CHOSEN_FALLING, Knob.ORPO_WEIGHT, 0.5, f"{why}: {what}", evidence)]
    if objective in (Objective.ORPO, Objective.DPO, Objective.IPO):
        what = f"objective {Objective.DPOP} instead of {objective}"
        to_value = str(Objective.DPOP)
        return [now.decide(GovernorRule.CHOSEN_FALLING, Knob.OBJECTIVE, to_value, f"{why}: {what}", evidence)]
    return []


def too_large(now: Situation) -> list[GovernorDecision]:
    """The policy moves too far from the base, or towards sycophancy: gentler steps, until that is over.

    Each decision waits for measurements of policies that were trained after the one before it.
    """
    earlier = now.newest_of(GovernorRule.TOO_LARGE)
    measured = _sizes(now.promoted(0 if earlier is None else earlier.cycle_number))
    bounds = _bounds(now)
    beyond = [name for name, value in measured.items() if value > bounds[name]]
    if beyond:
        why = " and ".join(f"{name} is {measured[name]:.3f} nats, above {bounds[name]:g}" for name in beyond)
        evidence = {"beyond": beyond, "measured": measured, "bounds": bounds}
        return _factor_changes(now, GovernorRule.TOO_LARGE, (Knob.SCENARIOS, Knob.LR), 0.5, why, evidence)
    wanted = {} if earlier is None else dict.fromkeys(earlier.evidence.get("beyond", ()))
    if earlier is None or not wanted.keys() <= measured.keys():
        return []
    if any(value >= _OVER * bounds[name] for name, value in measured.items()):
        return []
    why = " and ".join(
        f"{name} is {value:.3f} nats, below two thirds of {bounds[name]:g}" for name, value in measured.items()
    )
    evidence = {"beyond": list(wanted), "measured": measured, "bounds": bounds}
    return [
        now.decide(GovernorRule.TOO_LARGE, knob, 1.0, f"{why}: {_NAMES[knob]} back to x 1", evidence)
        for knob in lowered(now)
        if not now.rests(knob)
    ]


def too_small(now: Situation) -> list[GovernorDecision]:
    """Nothing moves after many steps under the same settings: first more scenarios per step, then a higher rate."""
    config = now.config
    if sum(record.outcome is Outcome.PROMOTED for record in now.records) < WARMUP_STEPS:
        return []
    steps = now.promoted(_settled_since(now))[-config.patience_cycles :]
    influences = [r.differences["direction_influence"] for r in steps if "direction_influence" in r.differences]
    if len(steps) < config.patience_cycles or len(influences) < 2:
        return []
    moved = max(*influences, 0.0) - min(*influences, 0.0)  # 0: the base
    if moved >= config.flat_influence:
        return []
    why = f"direction_influence moved by {moved:.4f} nats in {len(steps)} steps, less than {config.flat_influence:g}"
    evidence = {"moved": moved, "steps": len(steps), "first_cycle": steps[0].number, "last_cycle": steps[-1].number}
    for knob in (Knob.SCENARIOS, Knob.LR):
        changes = _factor_changes(now, GovernorRule.TOO_SMALL, (knob,), 2.0, why, evidence)
        if changes or now.rests(knob):
            return changes
    return []


def is_near_too_large(now: Situation) -> bool:
    """Whether a change is too large, is not yet over, or is held down by `too_large`: nothing may be raised then."""
    bounds = _bounds(now)
    return bool(lowered(now)) or any(value >= _OVER * bounds[name] for name, value in _sizes(now.promoted()).items())


def lowered(now: Situation) -> list[Knob]:
    """Settings that `too_large` holds below normal, also while a rollback's decision holds them lower still."""
    found = []
    for knob in (Knob.SCENARIOS, Knob.LR):
        lasting = now.newest_lasting(knob)
        if lasting is not None and lasting.rule is GovernorRule.TOO_LARGE and now.factor(knob) < 1.0:
            found.append(knob)
    return found


def favoured_pack(fell: Sequence[str], user_packs: frozenset[str]) -> str | None:
    """The pack that trains the first capability among the probes that fell; None when none of them is one."""
    for probe in fell:
        name = probe.removesuffix(CONFIRMATION_SUFFIX)
        if name in _PACKS:
            return _PACKS[name]
        if name in user_packs:
            return name
    return None


_NAMES = {Knob.SCENARIOS: "scenarios per cycle", Knob.LR: "learning rate"}


def _is_answered(now: Situation, rolled_back: CycleRecord) -> bool:
    earlier = now.newest_of(GovernorRule.AFTER_ROLLBACK)
    return earlier is not None and earlier.cycle_number > rolled_back.number


def _chosen_fall(now: Situation, since: int) -> tuple[str, dict[str, object]] | None:
    """Why the chosen answers count as falling, with the numbers; None when they do not."""
    last = now.records[-1] if now.records else None
    if last is not None and last.outcome is Outcome.ROLLED_BACK and "chosen_logp" in last.fell:
        return f"chosen_logp was lower in cycle {last.number}, which was rolled back", {"cycle": last.number}
    found = [(r.number, r.differences["chosen_logp"]) for r in now.promoted(since) if "chosen_logp" in r.differences]
    if len(found) <= CHOSEN_STEPS:
        return None
    (first, before), (newest, value) = found[-1 - CHOSEN_STEPS], found[-1]
    if before - value <= CHOSEN_FALL:
        return None
    why = f"chosen_logp fell from {before:+.3f} (cycle {first}) to {value:+.3f} nats (cycle {newest}) against the base"
    return why, {"cycles": [first, newest], "difference_from_base": [before, value]}


def _bounds(now: Situation) -> dict[str, float]:
    return {"kl": now.config.max_kl, "sycophancy": now.config.max_sycophancy}


def _sizes(promoted: Sequence[CycleRecord]) -> dict[str, float]:
    """The newest KL and sycophancy (above the base's) among these cycles, where measured."""
    found: dict[str, float] = {}
    for record in promoted:
        found |= {name: record.means[name] for name in ("kl",) if name in record.means}
        found |= {name: record.differences[name] for name in ("sycophancy",) if name in record.differences}
    return found


def _factor_changes(
    now: Situation, rule: GovernorRule, knobs: Sequence[Knob], by: float, why: str, evidence: Mapping[str, object]
) -> list[GovernorDecision]:
    """Each of `knobs` times `by`, within its bounds; none that rests, and none that is at its bound already."""
    found = []
    for knob in knobs:
        before, after = now.factor(knob), now.bounded(knob, now.factor(knob) * by)
        if after != before and not now.rests(knob):
            reason = f"{why}: {_NAMES[knob]} x {after:g} instead of x {before:g}"
            found.append(now.decide(rule, knob, after, reason, evidence))
    return found


def _settled_since(now: Situation) -> int:
    """The first cycle since which learning rate and scenarios per cycle are what they are now."""
    changes = [d for d in now.decisions if d.knob in (Knob.LR, Knob.SCENARIOS)]
    return max((d.cycle_number if d.until_cycle is None else d.until_cycle + 1 for d in changes), default=0)
