"""Hard gates: limits without statistics. Each returns what it looked at, tripped or not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from daemon.domain.errors import DreamdError
from daemon.domain.records import StepReport
from daemon.domain.states import RollbackTarget
from daemon.watchdog import items
from daemon.watchdog.items import Results

MIN_UPDATES = 5
"""Earlier steps a median needs; with fewer, the gate is not looked at."""
NUM_UPDATES = 20
"""Earlier steps the median is taken over."""
ALL = "all"
"""How the shares of all held-out answers together are called."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate, looked at."""

    name: str
    value: float | None
    """None: it could not be looked at (too few earlier steps), or the value is not a finite number."""
    limit: float | None
    tripped: bool
    sentence: str
    """What was seen, in words and figures."""
    target: RollbackTarget = RollbackTarget.PARENT
    names: tuple[str, ...] = ()
    """Everything that broke the gate, where that is more than one figure."""
    probes: tuple[str, ...] = ()
    """The probes in which the candidate was worse."""

    def evidence(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": items.finite(self.value),
            "limit": items.finite(self.limit),
            "tripped": self.tripped,
            "finding": self.sentence,
            "names": list(self.names),
        }


def finite_gate(step: StepReport, probes: Mapping[str, Results]) -> Gate:
    """Trips on any number of the step or of the trainer's probes that is not finite.

    It names no probe as worse: a number that is missing says nothing about what the policy can do.
    """
    measured = {
        "loss": step.loss,
        "NLL term": step.nll,
        "odds term": step.odds_loss,
        "chosen log-probability": step.chosen_logprob,
        "gradient norm": step.grad_norm,
        "update": step.update_rms,
        # A batch without pairs has none of these: absent is not the same as not finite.
        "rejected log-probability": 0.0 if step.rejected_logprob is None else step.rejected_logprob,
        "log odds": 0.0 if step.log_odds is None else step.log_odds,
        "margin": 0.0 if step.margin is None else step.margin,
    }
    found = [f"the step's {name}" for name, value in measured.items() if items.finite(value) is None]
    found += [f"{probe} of {item}" for probe, results in probes.items() for item in items.not_finite(results)]
    seen = f"{len(found)} numbers are not finite" if len(found) > 1 else "1 number is not finite"
    sentence = f"{seen}, first {found[0]}" if found else "every number is finite"
    return Gate("finite", float(len(found)), 0.0, bool(found), sentence, names=tuple(found))


def nll_rise_gate(rise: float, limit: float) -> Gate:
    """Trips when held-out NLL rose over the parent by more than `limit`, nats per token."""
    moved = "rose" if rise >= 0 else "fell"
    sentence = f"held-out NLL {moved} by {abs(rise):.3f} nats over its parent, gate {limit:.3f}"
    return Gate("nll_rise", rise, limit, rise > limit, sentence, probes=(items.NLL,))


def update_norm_gate(update: float, earlier: Sequence[float], max_ratio: float) -> Gate:
    """Trips when the update is more than `max_ratio` times the median of the last 20 promoted steps.

    The root mean square stands for the norm: their ratio is fixed by the number of weights. Both are in units of their
    step's learning rate: a plan's next phase may have a rate twenty times as high, and that is no accident.
    """
    known = [value for value in earlier if math.isfinite(value) and value > 0][-NUM_UPDATES:]
    if len(known) < MIN_UPDATES:
        sentence = f"{len(known)} earlier updates are known, the gate starts at {MIN_UPDATES}"
        return Gate("update_norm", None, None, False, sentence)
    usual = median(known)
    limit = max_ratio * usual
    ratio = update / usual
    sentence = (
        f"the update ({update:.3g} lr) is {ratio:.2f} times the usual one ({usual:.3g} lr), gate {max_ratio:g} times"
    )
    return Gate("update_norm", update, limit, update > limit, sentence)


def batch_gate(step: StepReport, earlier: Sequence[tuple[float, float | None]], max_shift: float) -> Gate:
    """Trips when the batch's chosen or rejected answers are that much likelier or less likely than they usually are.

    A batch of junk, or one with chosen and rejected swapped, is seen here before any held-out measurement moves.

    Args:
        step: the candidate's; its log-probabilities are finite.
        earlier: (chosen, rejected) mean log-probability of the earlier promoted steps' batches, oldest first.
        max_shift: nats per token, either way.
    """
    columns: dict[str, tuple[float | None, list[float | None]]] = {
        "chosen": (step.chosen_logprob, [chosen for chosen, _ in earlier]),
        "rejected": (step.rejected_logprob, [rejected for _, rejected in earlier]),
    }
    shifts: dict[str, float] = {}
    seen = []
    for name, (now, column) in columns.items():
        known = [value for value in column if value is not None and math.isfinite(value)][-NUM_UPDATES:]
        if now is not None and len(known) >= MIN_UPDATES:
            shifts[name] = now - median(known)
            seen.append(f"{name} answers have log-probability {now:.2f}, usually {median(known):.2f}")
    if not shifts:
        sentence = f"{len(earlier)} earlier batches are known, the gate starts at {MIN_UPDATES}"
        return Gate("batch", None, None, False, sentence)
    largest = max(shifts.values(), key=abs)
    tripped = tuple(name for name, shift in shifts.items() if abs(shift) > max_shift)
    sentence = f"the batch's {'; its '.join(seen)}; gate {max_shift:g} nats either way"
    return Gate("batch", largest, max_shift, bool(tripped), sentence, names=tripped)


def batch_margin_gate(name: str, pairs: str, now: float | None, earlier: Sequence[float], max_shift: float) -> Gate:
    """Trips when chosen and rejected stand to each other quite otherwise than they usually do.

    The policy's own failures are likely under it, better answers are less so: the margin is negative. With chosen and
    rejected swapped it changes its sign, while each of the two stays within what it can be.

    Args:
        name: of the gate.
        pairs: which of the batch's pairs these are, in words.
        now: mean over the pairs of chosen minus rejected log-probability, nats per token; None: too few pairs.
        earlier: of the earlier promoted steps' batches, oldest first.
        max_shift: from the median, either way; small batches differ more, so four usual deviations count too (the
            median absolute deviation x 1.4826, which is the standard deviation of a normal distribution).
    """
    known = [value for value in earlier if math.isfinite(value)][-NUM_UPDATES:]
    if now is None or len(known) < MIN_UPDATES:
        sentence = f"{len(known)} earlier batches with pairs are known, the gate starts at {MIN_UPDATES}"
        return Gate(name, None, None, False, sentence)
    usual = median(known)
    limit = max(max_shift, 4 * 1.4826 * median(abs(value - usual) for value in known))
    sentence = (
        f"in {pairs} chosen answers are {now:+.2f} nats likelier than rejected ones, usually {usual:+.2f}; "
        f"gate {limit:.2f} nats either way"
    )
    return Gate(name, now - usual, limit, abs(now - usual) > limit, sentence)


def chosen_falling_gate(ancestry: Sequence[float], now: float, num_cycles: int, total: float) -> Gate:
    """Trips when the held-out chosen log-probability fell in each of the last `num_cycles` cycles, by `total` in all.

    No single step did that, so it goes back to the last baked checkpoint.
    """
    series = [*ancestry, now]
    falls = 0
    while falls < len(series) - 1 and series[-falls - 1] < series[-falls - 2]:
        falls += 1
    counted = min(falls, num_cycles)
    fallen = series[-counted - 1] - now
    fell = f"fell {falls} cycles in a row, by {fallen:.3f} nats over the last {counted}" if falls else "did not fall"
    sentence = f"held-out chosen log-probability {fell}, gate {num_cycles} cycles and {total:.3f}"
    tripped = falls >= num_cycles and fallen >= total
    return Gate("chosen_falling", fallen, total, tripped, sentence, RollbackTarget.A1, probes=(items.CHOSEN_LOGP,))


def degenerate_gate(shares: Mapping[str, Mapping[str, float]], max_rise: float) -> Gate:
    """Trips when the share of degenerate answers is above the base's by more than `max_rise`.

    The prompts rotate, so shares are compared, not items. The limit is measured from the base, so a slow rise can
    reach it too: the parent is the target only when at least half of the rise came in this step.

    Args:
        shares: probe, or "all" for both together -> "now", "parent", "base" -> share of degenerate answers.
        max_rise: share above the base's.
    """
    both = shares[ALL]
    now, parent, base = both["now"], both["parent"], both["base"]
    rise = now - base
    sentence = (
        f"{now:.0%} of the held-out answers are degenerate, {base:.0%} on the base and {parent:.0%} on the parent, "
        f"gate {max_rise:.0%} above the base"
    )
    target = RollbackTarget.PARENT if now - parent >= rise / 2 else RollbackTarget.A1
    worse = tuple(probe for probe, each in shares.items() if probe != ALL and each["now"] > each["base"])
    return Gate("degenerate", rise, max_rise, rise > max_rise, sentence, target, probes=worse)


def degenerate_shares(answers: Mapping[str, Mapping[str, Results]]) -> dict[str, dict[str, float]]:
    """Share of degenerate (empty or looping) answers, by probe and over all of them, by whose they are.

    Args:
        answers: probe -> whose -> results.

    Raises:
        DreamdError: an answer does not say whether it is degenerate.
    """
    found = {
        probe: {whose: (_num_degenerate(results, whose), len(results)) for whose, results in by_whose.items()}
        for probe, by_whose in answers.items()
    }
    shares = {
        probe: {items.KEYS[whose]: count / total for whose, (count, total) in each.items()}
        for probe, each in found.items()
    }
    together = {
        whose: [sum(counts) for counts in zip(*(each[whose] for each in found.values()), strict=True)]
        for whose in items.KEYS
    }
    return {ALL: {items.KEYS[whose]: count / total for whose, (count, total) in together.items()}, **shares}


def _num_degenerate(results: Results, whose: str) -> int:
    found = 0
    for result in results.values():
        degenerate = result.detail.get("degenerate")
        if degenerate is not True and degenerate is not False:
            raise DreamdError(
                f"probe {result.probe}: {whose}'s item {result.item} does not say whether it is degenerate"
            )
        found += degenerate
    return found
