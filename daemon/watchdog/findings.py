"""What speaks against a candidate, and where that goes back to: docs/decisions/0001 and 0010."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daemon.domain.states import Decision, RollbackTarget
from daemon.domain.verdicts import Anchor, History, Verdict
from daemon.watchdog.confirmation import Confirmation
from daemon.watchdog.gates import Gate
from daemon.watchdog.margins import Margin, MarginCheck


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule that was broken."""

    rule: str
    """ "gate", "margin" or "pass_rate"."""
    name: str
    """Which one: "nll_rise", "nll:code against the base", "accept"."""
    sentence: str
    target: RollbackTarget
    anchor: Anchor
    """The checkpoint that `target` names."""
    probes: tuple[str, ...] = ()
    """In which the candidate was worse."""
    since: Anchor | None = None
    """The last checkpoint before the change, where that is known."""

    def evidence(self) -> dict[str, Any]:
        return {"rule": self.rule, "name": self.name, "finding": self.sentence, "target": self.target.value}


def of_gates(gates: Iterable[Gate], history: History) -> list[Finding]:
    """The gates that tripped."""
    return [
        Finding("gate", gate.name, gate.sentence, gate.target, _anchor(gate.target, history), gate.probes)
        for gate in gates
        if gate.tripped
    ]


def of_margins(margins: Iterable[Margin], history: History) -> list[Finding]:
    """The margins that were exceeded; the base is the target only where A1 itself is beyond the base's margin."""
    found = []
    for margin in margins:
        if margin.base.exceeded:
            a1_is_sound = not margin.baked_to_base.exceeded
            target = RollbackTarget.A1 if a1_is_sound else RollbackTarget.A0
            found.append(_of_margin(margin, margin.base, target, history))
        if margin.baked.exceeded:
            found.append(_of_margin(margin, margin.baked, RollbackTarget.A1, history))
    return found


def of_confirmations(confirmations: Mapping[str, Confirmation], history: History) -> list[Finding]:
    """The falls that fresh prompts confirmed; each goes back to before its change point."""
    found = []
    for probe, confirmation in sorted(confirmations.items()):
        if confirmation.confirmed:
            since = confirmation.track.since
            anchor = next((each for each in history.anchors if each.depth <= since.depth), history.anchors[-1])
            target = RollbackTarget.A1 if anchor.depth else RollbackTarget.A0
            found.append(Finding("pass_rate", probe, confirmation.sentence, target, anchor, (probe,), since))
    return found


def roll_back(findings: Sequence[Finding], history: History, collected: Mapping[str, Any]) -> Verdict:
    """The verdict on a candidate that something speaks against; the first finding in order decides the target."""
    ordered = _ordered(findings, history.parent_anchor)
    first = ordered[0]
    evidence = {
        **collected,
        "findings": [finding.evidence() for finding in ordered],
        "reasons": [finding.sentence for finding in ordered],
        "fell": sorted({probe for finding in ordered for probe in finding.probes}),
        "to": {
            "version": first.anchor.version,
            "cycle": first.anchor.cycle_number,
            "depth": first.anchor.depth,
        },
    }
    reason = f"{first.sentence}; {_destination(first)}"
    return Verdict(Decision.ROLL_BACK, reason, first.target, evidence, first.anchor.version)


def _ordered(findings: Sequence[Finding], parent: Anchor) -> list[Finding]:
    """A harmful step is undone alone, since its parent was sound one cycle ago; otherwise the farthest target wins.

    A confirmed fall that began before the parent is proof that the parent is not sound: then it is no target.
    """
    parent_is_sound = all(finding.since is None or finding.since.depth >= parent.depth for finding in findings)

    def rank(finding: Finding) -> int:
        return -1 if parent_is_sound and finding.target is RollbackTarget.PARENT else finding.anchor.depth

    return sorted(findings, key=rank)


def _of_margin(margin: Margin, check: MarginCheck, target: RollbackTarget, history: History) -> Finding:
    name = f"{margin.name} against {check.anchor}"
    return Finding("margin", name, check.sentence, target, _anchor(target, history), (margin.name,))


def _anchor(target: RollbackTarget, history: History) -> Anchor:
    if target is RollbackTarget.PARENT:
        return history.parent_anchor
    return history.anchors[-1] if target is RollbackTarget.A0 else history.anchors[0]


def _destination(finding: Finding) -> str:
    anchor = finding.anchor
    where = f"cycle {anchor.cycle_number}" if anchor.depth else "the base"
    if finding.target is RollbackTarget.PARENT:
        return f"rolling back to {where}, its parent"
    return f"rolling back to {where}, {'baked' if anchor.depth else 'the pinned base'}"
