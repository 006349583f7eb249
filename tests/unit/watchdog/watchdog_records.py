"""Small records for watchdog tests: a checkpoint's probe results from a few numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from daemon.config.watching import WatchdogConfig
from daemon.domain.probing import ProbeResult
from daemon.domain.records import StepReport
from daemon.domain.verdicts import Anchor, Evidence, History, PassCount, Suspicion, Verdict
from daemon.ports import Judge
from daemon.watchdog import Watchdog

STEP = StepReport(
    objective="orpo",
    optimizer="adamw",
    lr=1e-5,
    loss=2.0,
    nll=1.9,
    odds_loss=0.7,
    chosen_logprob=-1.9,
    rejected_logprob=-1.5,
    log_odds=-0.5,
    margin=-0.4,
    grad_norm=3.0,
    update_rms=1e-5,
    num_examples=4,
    num_pairs=3,
    num_tokens=120,
)

NLL = (2.5, 3.0, 3.5, 2.75)
"""Held-out NLL of the base on four documents."""

SYCOPHANCY = (-0.5, -1.0, -0.75)
"""How much likelier the base gives in to three wrong claims than it pushes back."""


def results(
    nll: Sequence[float | None] = NLL,
    *,
    chosen_logp: Sequence[float | None] = (-2.0, -1.5),
    sycophancy: Sequence[float | None] = SYCOPHANCY,
    degenerate: int = 0,
    passed: int = 5,
    num_answers: int = 10,
) -> tuple[ProbeResult, ...]:
    """A whole checkpoint: of `num_answers` per side the first `passed` pass, accept's last ones are degenerate."""
    answers = [
        ProbeResult(
            probe,
            f"{probe}-{number}",
            float(number < passed),
            number < passed,
            {"degenerate": probe == "accept" and number >= num_answers - degenerate},
        )
        for probe in ("accept", "push_back")
        for number in range(num_answers)
    ]
    return (*trainer_results(nll, chosen_logp=chosen_logp, sycophancy=sycophancy), *answers)


def trainer_results(
    nll: Sequence[float | None] = NLL,
    *,
    chosen_logp: Sequence[float | None] = (-2.0, -1.5),
    sycophancy: Sequence[float | None] = SYCOPHANCY,
) -> tuple[ProbeResult, ...]:
    """What the trainer alone measures."""
    return (
        *(ProbeResult("nll", f"doc-{number}", value) for number, value in enumerate(nll)),
        *(ProbeResult("chosen_logp", f"chosen-{number}", value) for number, value in enumerate(chosen_logp)),
        *(ProbeResult("sycophancy", f"claim-{number}", value) for number, value in enumerate(sycophancy)),
    )


def of_kinds(shifts: Mapping[str, float], num_each: int = 6) -> tuple[ProbeResult, ...]:
    """`results()` with `num_each` documents of each kind, whose NLL is 3.0 and the kind's shift."""
    documents = (
        ProbeResult("nll", f"{kind}-{number}", 3.0 + shift, detail={"kind": kind})
        for kind, shift in shifts.items()
        for number in range(num_each)
    )
    return (*documents, *(result for result in results() if result.probe != "nll"))


def answers(probe: str, failures: int, num_items: int, turn: int = 0) -> tuple[ProbeResult, ...]:
    """Answers to one turn's prompts of a rotating pool; the first `failures` failed."""
    return tuple(
        ProbeResult(
            probe, f"{probe}-{turn}-{number}", float(number >= failures), number >= failures, {"degenerate": False}
        )
        for number in range(num_items)
    )


def without(found: Sequence[ProbeResult], *probes: str) -> tuple[ProbeResult, ...]:
    return tuple(result for result in found if result.probe not in probes)


def shifted(by: float, nll: Sequence[float] = NLL) -> tuple[float, ...]:
    return tuple(value + by for value in nll)


def verdict_of(past: History, now: Evidence, judge: Judge | None = None) -> Verdict:
    """The verdict, where one is expected at once."""
    found = (judge or Watchdog(WatchdogConfig())).judge(past, now)
    assert isinstance(found, Verdict), found
    return found


def suspicion_of(past: History, now: Evidence, judge: Judge | None = None) -> Suspicion:
    """The suspicion, where one is expected."""
    found = (judge or Watchdog(WatchdogConfig())).judge(past, now)
    assert isinstance(found, Suspicion), found
    return found


def evidence(now: Sequence[ProbeResult] | None = None, **step: Any) -> Evidence:
    return Evidence(replace(STEP, **step), tuple(results() if now is None else now))


def history(
    *,
    parent: Sequence[ProbeResult] | None = None,
    baked: Sequence[ProbeResult] | None = None,
    base: Sequence[ProbeResult] | None = None,
    update_rms_over_lr: Sequence[float] = (),
    chosen_logp: Sequence[float] = (-1.75,),
    **other: Any,
) -> History:
    """Anchors that equal `results()` unless given; promoted step 2 of a run of which only the base is an anchor."""
    anchors = [tuple(results() if anchor is None else anchor) for anchor in (parent, baked, base)]
    return History(*anchors, update_rms_over_lr=tuple(update_rms_over_lr), chosen_logp=tuple(chosen_logp), **other)


ANCHORS = (Anchor("v20", 24, 20), Anchor("v10", 12, 10), Anchor("base", 0, 0))
"""A1 is promoted step 20, made by cycle 24: four cycles were refused or skipped before it."""


def seasoned(
    *,
    depth: int = 30,
    anchors: Sequence[Anchor] = ANCHORS,
    references: Mapping[str, Mapping[str, PassCount]] | None = None,
    **other: Any,
) -> History:
    """A history past the warm-up, whose parent is promoted step `depth`; 10 % of accept and push_back fail."""
    tenth = {"base": PassCount(40, 400)}
    usual = {"accept": tenth, "push_back": tenth} if references is None else references
    return history(
        parent_anchor=Anchor(f"v{depth}", depth + 5, depth), anchors=tuple(anchors), references=usual, **other
    )
