"""What the watchdog did in one cycle, line by line, from what `history.everything_of` returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from daemon.cli.watching import adjusted, change_of, effect_of, until_of
from daemon.domain.probing import CONFIRMATION_SUFFIX

Record = Mapping[str, Any]
Line = tuple[str, str]

_FEW = 4
_PROBE_STAGES = ("probe", "confirm")
_ALWAYS_IN_THE_ENGINE = frozenset({"accept", "push_back"})


def settings_lines(found: Record) -> Iterator[Line]:
    """What this cycle's settings were changed to, by whom, and which scenario families rested."""
    changed = adjusted(found["adjustments"], found["breaker_lr_factor"])
    if changed:
        yield "adjusted", changed
    for decision in found["governor"]:
        until = "" if decision["until_cycle"] is None else f" until {until_of(decision)}"
        yield "governor", f"{change_of(decision)}{until}, {effect_of(decision)}: {decision['reason']}"
    if found["resting"]:
        yield "resting", _resting(found["resting"])


def probe_lines(found: Record) -> Iterator[Line]:
    """What the probes took, what was skipped and why, and what had to be measured afresh."""
    runs: Sequence[Record] = found["probe_runs"]
    if runs:
        yield "probes", _costs(runs, found["cycle"]["seconds"] or {})
    for run in runs:
        if run["skipped"]:
            yield "skipped", f"{run['probe']}: {run['skipped']}"
    if runs and found["unmeasured"]:
        yield "left out", _left_out(found["unmeasured"])
    for event in found["events"]:
        if event["name"] == "suspected":
            yield "suspicion", event["payload"]["reason"]
    fresh = [probe for probe in found["probes"] if probe["probe"].endswith(CONFIRMATION_SUFFIX)]
    if fresh:
        yield "fresh", ", ".join(map(_fresh, fresh))


def verdict_lines(found: Record) -> Iterator[Line]:
    """The verdict in its own words; after a rollback, where it went and what was proven."""
    verdict: Record | None = found["verdict"]
    if verdict is not None:
        yield "verdict", f"{verdict['decision'].replace('_', ' ')}: {verdict['reason']}"
    rollback: Record | None = found["rollback"]
    if rollback is not None:
        yield "rollback", f"{rollback['from_version']} -> {rollback['to_version']}, {_verified(rollback)}"


def _resting(families: Sequence[Record]) -> str:
    """Few by name, many by pack."""
    if len(families) <= _FEW:
        return ", ".join(f"{one['pack']}/{one['family']} until cycle {one['until_cycle']}" for one in families)
    packs = Counter(one["pack"] for one in families)
    listed = ", ".join(f"{pack} {number}" for pack, number in sorted(packs.items()))
    return f"{len(families)} families: {listed}; the last until cycle {max(one['until_cycle'] for one in families)}"


def _costs(runs: Sequence[Record], stages: Mapping[str, float]) -> str:
    seconds: dict[str, float] = {}
    for run in runs:
        seconds[run["probe"]] = seconds.get(run["probe"], 0.0) + run["seconds"]
    each = ", ".join(f"{probe} {value:.1f}" for probe, value in seconds.items())
    total = sum(stages.values())
    if not total:
        return f"{each} s"
    share = sum(stages.get(name, 0.0) for name in _PROBE_STAGES) / total
    return f"{each} s; {100 * share:.0f} % of the cycle"


def _left_out(unmeasured: Sequence[Record]) -> str:
    listed = ", ".join(f"{probe['probe']} (last in cycle {probe['cycle']})" for probe in unmeasured)
    if _ALWAYS_IN_THE_ENGINE & {probe["probe"] for probe in unmeasured}:
        return f"{listed}: the trainer's probes refused the candidate before the engine had it"
    return f"{listed}: not their turn, or over probes.budget"


def _fresh(probe: Record) -> str:
    rate = "none judged" if probe["pass_rate"] is None else f"{100 * probe['pass_rate']:.0f} % passed"
    return f"{probe['probe'].removesuffix(CONFIRMATION_SUFFIX)}: {rate} of {probe['num_items']} fresh prompts"


def _verified(rollback: Record) -> str:
    proof: Record | None = rollback["verification"]
    if rollback["verified_at"] is None:
        return "not verified yet: the next start verifies it"
    if not proof or "nll_items_equal" not in proof:
        return "verified"
    # A proof is only written when all of it holds.
    engine = proof["engine"]
    return (
        "verified: digests of weights and optimizer equal, "
        f"{proof['nll_items_equal']} held-out documents equal to the bit, "
        f"engine within {engine['mean_abs_diff']:.1e} nats of the trainer"
    )
