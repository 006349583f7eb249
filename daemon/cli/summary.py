"""One cycle in a few lines, from what `queries.show_cycle` returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from daemon.cli.watch_lines import probe_lines, settings_lines, verdict_lines

Record = Mapping[str, Any]

_SIDES = {"accept": "accept", "push_back": "push back", "general": "general"}


def cycle_lines(found: Record) -> list[str]:
    """What a person wants to know about a cycle; a line for each part the cycle got to."""
    # The verdict's own line gives the reason, when there was one.
    first = cycle_line({**found["summary"], "reason": None} if found["verdict"] else found["summary"])
    return [first, *(f"  {name:<10} {text}" for name, text in _parts(found))]


def cycle_line(summary: Record) -> str:
    """How a row of `cycle_summary` ended, and why."""
    outcome = summary["outcome"] or f"unfinished, {summary['state']}"
    reason = f": {summary['reason']}" if summary["reason"] else ""
    return f"cycle {summary['cycle']} {outcome}{reason}"


def _parts(found: Record) -> Iterator[tuple[str, str]]:
    summary: Record = found["summary"]
    scenarios: Sequence[Record] = found["scenarios"]
    yield from settings_lines(found)
    if scenarios:
        sides = Counter(scenario["side"] for scenario in scenarios)
        listed = ", ".join(f"{words} {sides[side]}" for side, words in _SIDES.items() if sides[side])
        yield "scenarios", f"{len(scenarios)}: {listed}"
        yield "sources", _sources(found)
    if summary["num_completions"]:
        passed = f"{summary['num_passed']} of {summary['num_judged']} unguided, judged ones passed"
        yield "sweep", f"{summary['num_completions']} answers; {passed}"
        yield "examples", f"{_counted(summary['num_pairs'], 'pair')}, {summary['num_chosen_only']} chosen-only"
    if found["diversity"] is not None:
        yield "diversity", _diversity(found["diversity"])
    if summary["loss"] is not None:
        yield "step", _step(summary, found["step"])
    if summary["held_out_nll"] is not None:
        yield "held-out", _held_out(found)
    if summary["accept_rate"] is not None or summary["push_back_rate"] is not None:
        yield "behaviour", ", ".join(_pass_rate(found, probe) for probe in ("accept", "push_back"))
    if found["engine_checks"]:
        yield "engine", _engine(found["engine_checks"][-1])
    yield from probe_lines(found)
    yield from verdict_lines(found)
    seconds: Record = found["cycle"]["seconds"] or {}
    if seconds:
        yield "seconds", ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items())


def _sources(found: Record) -> str:
    """Scenarios by pack or source, then the yield of dreams, then what was refused, by reason."""
    packs = Counter(scenario["pack"] for scenario in found["scenarios"])
    parts = [", ".join(f"{pack} {count}" for pack, count in sorted(packs.items()))]
    for event in found["events"]:
        if event["name"] == "dreamed":
            parts.append("dreams {used} used of {written} written".format(**event["payload"]))
    for read in found["source_reads"]:
        parts.append(f"{read['name']} read to line {read['line']}")
    reasons = Counter(refusal["reason"] for refusal in found["refusals"])
    if reasons:
        parts.append("refused " + ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())))
    return "; ".join(parts)


def _diversity(diversity: Record) -> str:
    return (
        f"families {diversity['num_families']}, constraints per scenario {diversity['mean_constraints']:.1f}, "
        f"distinct-2 {diversity['prompt_distinct_2']:.2f} (prompts) {diversity['chosen_distinct_2']:.2f} (chosen), "
        f"mean similarity {diversity['mean_jaccard']:.3f}"
    )


def _step(summary: Record, step: Record | None) -> str:
    rejected = "-" if summary["rejected_logprob"] is None else f"{summary['rejected_logprob']:.3f}"
    rate = "" if step is None else f" ({step['objective']}, lr {step['lr']:g})"
    return f"loss {summary['loss']:.4f}, log p chosen {summary['chosen_logprob']:.3f}, rejected {rejected}{rate}"


def _held_out(found: Record) -> str:
    against = ((_nll_vs_base(found), "the base"), (_nll_vs_parent(found), "the parent"))
    listed = ", ".join(f"{value:+.4f} against {whom}" for value, whom in against if value is not None)
    return f"NLL {found['summary']['held_out_nll']:.4f}" + (f" ({listed})" if listed else "")


def _nll_vs_base(found: Record) -> float | None:
    """As the verdict has it: over the documents that both measured."""
    paired: float | None = _evidence(found).get("differences", {}).get("nll")
    stored: float | None = found["summary"]["held_out_nll_vs_base"]
    return stored if paired is None else paired


def _nll_vs_parent(found: Record) -> float | None:
    """Likewise; without a verdict that says so only where both measured as many documents."""
    for gate in _evidence(found).get("gates", ()):
        if gate["name"] == "nll_rise" and gate["value"] is not None:
            return float(gate["value"])
    now, parent = _probe(found["probes"], "nll"), _probe(found["probes_parent"], "nll")
    if now is None or parent is None or None in (now["mean"], parent["mean"]):
        return None
    return float(now["mean"] - parent["mean"]) if now["num_items"] == parent["num_items"] else None


def _evidence(found: Record) -> Record:
    return (found["verdict"] or {}).get("evidence") or {}


def _pass_rate(found: Record, probe: str) -> str:
    now, before = _probe(found["probes"], probe), _probe(found["probes_parent"], probe)
    was = f" (parent {_percent(before)})" if before is not None else ""
    return f"{_SIDES[probe]} {_percent(now)}{was}"


def _engine(check: Record) -> str:
    difference = "not finite" if check["mean_abs_diff"] is None else f"{check['mean_abs_diff']:.1e} nats"
    match = "equal" if check["weights_match"] else "DIFFERENT"
    return f"{check['engine']}: mean |log p| difference from the trainer {difference}, weights {match}"


def _probe(probes: Sequence[Record], name: str) -> Record | None:
    return next((probe for probe in probes if probe["probe"] == name), None)


def _percent(probe: Record | None) -> str:
    return "-" if probe is None or probe["pass_rate"] is None else f"{100 * probe['pass_rate']:.0f} %"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
