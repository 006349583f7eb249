"""The judge: history and evidence in, verdict out. Reads records, touches nothing.

    trainer's probes -> finite? NLL over parent? update size?      -> `gate`: back to the parent at once
    engine's probes  -> degenerate answers? chosen falling?        |
    held-out NLL     -> against the last baked checkpoint, A1      |> `judge`
                     -> against the base, A0                       |

Why each finding goes back to where it goes: docs/decisions/0001-rollback-target.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daemon.config.watching import WatchdogConfig
from daemon.domain.probing import ProbeResult
from daemon.domain.states import Decision, RollbackTarget
from daemon.domain.verdicts import Evidence, History, Verdict
from daemon.watchdog import gates, items
from daemon.watchdog.gates import Gate
from daemon.watchdog.margins import MarginCheck, paired_difference

CANDIDATE, PARENT, BAKED, BASE = "the candidate", "the parent", "the last baked checkpoint", "the base"
_KEYS = {CANDIDATE: "now", PARENT: "parent", BAKED: "baked", BASE: "base"}
"""How the evidence calls them."""


@dataclass(frozen=True, slots=True)
class _Trainer:
    """What the trainer's probes say: gates, and margins when every number is finite."""

    gates: tuple[Gate, ...]
    margins: Mapping[str, MarginCheck]
    numbers: Mapping[str, Any]

    @property
    def tripped(self) -> tuple[Gate, ...]:
        return tuple(gate for gate in self.gates if gate.tripped)


class Watchdog:
    """Implements `ports.Judge` with hard gates and paired margins."""

    def __init__(self, config: WatchdogConfig) -> None:
        self._config = config

    def gate(self, history: History, evidence: Evidence) -> Verdict | None:
        """Refuse a candidate on the trainer's probes alone; None when every gate holds.

        Raises:
            DreamdError: a trainer's probe is missing, or its items are not the anchors' items.
        """
        trainer = self._trainer(history, evidence)
        return _refusal(trainer) if trainer.tripped else None

    def judge(self, history: History, evidence: Evidence) -> Verdict:
        """The verdict on complete evidence; exactly that of `gate` where `gate` gives one.

        A refused candidate is never loaded into the engine, so it has no engine probes, and a verdict
        recomputed from its stored rows must still be the same.

        Raises:
            DreamdError: a probe is missing, or its items are not the anchors' items.
        """
        trainer = self._trainer(history, evidence)
        if trainer.tripped:
            return _refusal(trainer)
        config = self._config
        engine = _engine_results(history, evidence)
        degenerate = {_KEYS[whose]: gates.degenerate_share(results, whose) for whose, results in engine.items()}
        looked_at = (
            *trainer.gates,
            gates.degenerate_gate(
                degenerate["now"], degenerate["parent"], degenerate["base"], config.max_degenerate_rise
            ),
            gates.chosen_falling_gate(
                history.chosen_logp,
                trainer.numbers["chosen_logp"]["now"],
                config.chosen_falling_cycles,
                config.chosen_falling_total,
            ),
        )
        numbers = {**trainer.numbers, "pass_rates": _pass_rates(engine), "degenerate": degenerate}
        collected = _collected(looked_at, trainer.margins, numbers)
        findings = _findings(looked_at) + _margin_findings(trainer.margins)
        if findings:
            return _roll_back(findings, collected)
        return Verdict(Decision.PROMOTE, _inside(trainer.margins), None, collected)

    def _trainer(self, history: History, evidence: Evidence) -> _Trainer:
        config = self._config
        matched = {probe: _matched(history, evidence, probe) for probe in items.TRAINER_PROBES}
        finite = gates.finite_gate(evidence.step, {probe: sides[CANDIDATE] for probe, sides in matched.items()})
        if finite.tripped:
            return _Trainer((finite,), {}, {})
        nll, chosen = (
            {whose: items.values(results, probe, whose) for whose, results in matched[probe].items()}
            for probe in items.TRAINER_PROBES
        )
        looked_at = (
            finite,
            gates.nll_rise_gate(paired_difference(nll[CANDIDATE], nll[PARENT]).mean, config.max_nll_rise),
            gates.update_norm_gate(
                evidence.step.update_rms_over_lr, history.update_rms_over_lr, config.max_update_norm_ratio
            ),
        )
        margins = {
            name: MarginCheck(
                anchor, paired_difference(nll[CANDIDATE], nll[anchor]), margin, config.num_standard_errors
            )
            for name, anchor, margin in (("baked", BAKED, config.margin_baked), ("base", BASE, config.margin_base))
        }
        # Whether A1 is itself too far from the base decides how far a rollback goes; it is no finding by itself.
        margins["baked_to_base"] = MarginCheck(
            BASE, paired_difference(nll[BAKED], nll[BASE]), config.margin_base, config.num_standard_errors
        )
        return _Trainer(looked_at, margins, {"nll": _means(nll), "chosen_logp": _means(chosen)})


def _matched(history: History, evidence: Evidence, probe: str) -> dict[str, dict[str, ProbeResult]]:
    """One probe's results of candidate, parent, A1 and A0, proven to be of the same items."""
    now = items.of_probe(evidence.results, probe, CANDIDATE)
    sides = {CANDIDATE: now}
    for whose, results in ((PARENT, history.parent), (BAKED, history.baked), (BASE, history.base)):
        sides[whose] = items.of_probe(results, probe, whose)
        items.require_same_items(probe, now, sides[whose], whose)
    return sides


def _engine_results(history: History, evidence: Evidence) -> dict[str, list[ProbeResult]]:
    """The held-out answers of both sides, by whose they are."""
    found: dict[str, list[ProbeResult]] = {}
    for probe in items.ENGINE_PROBES:
        for whose, results in _matched(history, evidence, probe).items():
            found.setdefault(whose, []).extend(results.values())
    return found


def _means(sides: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {_KEYS[whose]: items.mean(numbers) for whose, numbers in sides.items()}


def _pass_rates(engine: Mapping[str, Sequence[ProbeResult]]) -> dict[str, Any]:
    rates: dict[str, Any] = {}
    for probe in items.ENGINE_PROBES:
        passed = {
            # An answer that could not be judged says nothing about the rate.
            _KEYS[whose]: [result.passed for result in results if result.probe == probe and result.passed is not None]
            for whose, results in engine.items()
        }
        rates[probe] = {whose: sum(each) / len(each) if each else None for whose, each in passed.items()}
        rates[probe]["num_items"] = len(passed["now"])
    return rates


def _collected(
    looked_at: Sequence[Gate], margins: Mapping[str, MarginCheck], numbers: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything the decision rests on, as JSON."""
    return {
        "gates": [gate.evidence() for gate in looked_at],
        "margins": {name: check.evidence() for name, check in margins.items()},
        **numbers,
        "reasons": [],
    }


_Finding = tuple[str, RollbackTarget]
_ORDER = (RollbackTarget.PARENT, RollbackTarget.A0, RollbackTarget.A1)
"""A harmful step is undone alone, since its parent was sound one cycle ago; otherwise the farthest target wins."""


def _findings(looked_at: Sequence[Gate]) -> list[_Finding]:
    return [(gate.sentence, gate.target) for gate in looked_at if gate.tripped]


def _margin_findings(margins: Mapping[str, MarginCheck]) -> list[_Finding]:
    findings = []
    if margins["base"].exceeded:
        a1_is_sound = not margins["baked_to_base"].exceeded
        findings.append((margins["base"].sentence, RollbackTarget.A1 if a1_is_sound else RollbackTarget.A0))
    if margins["baked"].exceeded:
        findings.append((margins["baked"].sentence, RollbackTarget.A1))
    return findings


def _refusal(trainer: _Trainer) -> Verdict:
    return _roll_back(_findings(trainer.gates), _collected(trainer.gates, trainer.margins, trainer.numbers))


def _roll_back(findings: Sequence[_Finding], collected: Mapping[str, Any]) -> Verdict:
    ordered = sorted(findings, key=lambda finding: _ORDER.index(finding[1]))
    reason, target = ordered[0]
    evidence = {**collected, "reasons": [sentence for sentence, _ in ordered]}
    return Verdict(Decision.ROLL_BACK, reason, target, evidence)


def _inside(margins: Mapping[str, MarginCheck]) -> str:
    baked, base = margins["baked"], margins["base"]
    return (
        f"inside every gate and margin: held-out NLL {baked.difference.mean:+.4f} nats on {BAKED} "
        f"(margin {baked.margin:.4f}), {base.difference.mean:+.4f} on {BASE} (margin {base.margin:.4f})"
    )
