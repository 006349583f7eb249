"""Small records for watchdog tests: a checkpoint's probe results from a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from daemon.domain.probing import ProbeResult
from daemon.domain.records import StepReport
from daemon.domain.verdicts import Evidence, History

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


def results(
    nll: Sequence[float | None] = NLL,
    *,
    chosen_logp: Sequence[float | None] = (-2.0, -1.5),
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
    return (*trainer_results(nll, chosen_logp=chosen_logp), *answers)


def trainer_results(
    nll: Sequence[float | None] = NLL, *, chosen_logp: Sequence[float | None] = (-2.0, -1.5)
) -> tuple[ProbeResult, ...]:
    """What the trainer alone measures."""
    return (
        *(ProbeResult("nll", f"doc-{number}", value) for number, value in enumerate(nll)),
        *(ProbeResult("chosen_logp", f"chosen-{number}", value) for number, value in enumerate(chosen_logp)),
    )


def shifted(by: float, nll: Sequence[float] = NLL) -> tuple[float, ...]:
    return tuple(value + by for value in nll)


def evidence(now: Sequence[ProbeResult] | None = None, **step: Any) -> Evidence:
    return Evidence(replace(STEP, **step), tuple(results() if now is None else now))


def history(
    *,
    parent: Sequence[ProbeResult] | None = None,
    baked: Sequence[ProbeResult] | None = None,
    base: Sequence[ProbeResult] | None = None,
    update_rms_over_lr: Sequence[float] = (),
    chosen_logp: Sequence[float] = (-1.75,),
) -> History:
    """Anchors that equal `results()` unless given."""
    anchors = [tuple(results() if anchor is None else anchor) for anchor in (parent, baked, base)]
    return History(*anchors, update_rms_over_lr=tuple(update_rms_over_lr), chosen_logp=tuple(chosen_logp))
