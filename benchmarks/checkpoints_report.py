"""Figures of the checkpoint benchmark as Markdown, with their goals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median

GOAL_SIZE = 0.02
"""Image of a step over a full copy, at most, on average."""
GOAL_WAIT = 0.2
"""Seconds that the cycle waits over those of save_pretrained and fsync, at most."""
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Saved:
    """One state, saved once."""

    num_bytes: int
    seconds: float
    """That the caller waits."""


@dataclass(frozen=True, slots=True)
class StepFigures:
    """One step, saved by every peer."""

    changed: float
    """Fraction of bfloat16 words, 0 to 1."""
    kind: str
    chain_length: int
    image_bytes: int
    save_pretrained: Saved
    """Its bytes are a full copy: the weights as they are trained, and nothing else to speak of."""
    dcp: Saved
    alone: Saved
    """dreamd, with nothing to do meanwhile."""
    beside: Saved
    """dreamd, while the caller works; its seconds are what publishing and working took longer than working."""
    blocked_s: float
    """Of `beside`: seconds in which the caller did not work."""


@dataclass(frozen=True, slots=True)
class RestoreFigures:
    """One checkpoint loaded into the trainer, every hash verified."""

    name: str
    num_bytes: int
    """Of the files that are read."""
    seconds: float


def report(steps: Sequence[StepFigures], restores: Sequence[RestoreFigures], work_s: float) -> str:
    """The whole report."""
    parts = [*_summary(steps, work_s), *_goals(steps), *_steps(steps), *_restores(restores)]
    return "\n".join(parts)


def _summary(steps: Sequence[StepFigures], work_s: float) -> Iterator[str]:
    kept = fmean(step.image_bytes for step in steps)
    yield f"{len(steps)} steps; bytes: mean of the steps, seconds: median.\n"
    yield from _head("after each step", "MiB written", "MiB kept", "kept / full copy", "cycle waits, s", "/ first line")
    rows = [
        ("save_pretrained + fsync (weights)", [step.save_pretrained for step in steps], None),
        ("torch.distributed.checkpoint (weights, optimizer)", [step.dcp for step in steps], None),
        ("dreamd, nothing else to do (weights, optimizer, image)", [step.alone for step in steps], kept),
        (f"dreamd, beside {work_s:g} s of other work (the same)", [step.beside for step in steps], kept),
    ]
    for name, saved, kept_bytes in rows:
        written = fmean(one.num_bytes for one in saved)
        rest = written if kept_bytes is None else kept_bytes
        seconds = median(one.seconds for one in saved)
        yield (
            f"| {name} | {written / _MIB:.2f} | {rest / _MIB:.2f} | {rest / _full_copy(steps):.2%} "
            f"| {seconds:.3f} | {seconds / _baseline(steps):.2f} |"
        )
    blocked = median(step.blocked_s for step in steps)
    yield f"\nOf the wait beside other work {blocked:.3f} s are standing still, the rest is slower work."
    yield "dreamd keeps the exact state of the newest two beside that.\n"


def _goals(steps: Sequence[StepFigures]) -> Iterator[str]:
    shares = [step.image_bytes / step.save_pretrained.num_bytes for step in steps]
    wait = median(step.beside.seconds for step in steps) / _baseline(steps)
    kept = f"kept per step: {fmean(shares):.2%} of a full copy, {max(shares):.2%} at most"
    yield f"- {kept}; goal: {GOAL_SIZE:.0%}: {_met(fmean(shares), GOAL_SIZE)}"
    yield f"- the cycle waits {wait:.2f} x save_pretrained + fsync; goal: {GOAL_WAIT:g} x: {_met(wait, GOAL_WAIT)}\n"


def _steps(steps: Sequence[StepFigures]) -> Iterator[str]:
    yield from _head("step", "words changed", "image", "chain", "image, bytes", "/ full copy", "/ bfloat16 copy")
    for number, step in enumerate(steps, start=1):
        share = step.image_bytes / step.save_pretrained.num_bytes
        yield (
            f"| {number} | {step.changed:.2%} | {step.kind} | {step.chain_length} | {step.image_bytes} "
            f"| {share:.2%} | {2 * share:.2%} |"
        )
    yield ""


def _restores(restores: Sequence[RestoreFigures]) -> Iterator[str]:
    yield from _head("restore", "MiB read", "seconds", "/ exact")
    for one in restores:
        ratio = one.seconds / restores[0].seconds
        yield f"| {one.name} | {one.num_bytes / _MIB:.2f} | {one.seconds:.3f} | {ratio:.2f} |"


def _head(*names: str) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield "|" + "---|" * len(names)


def _full_copy(steps: Sequence[StepFigures]) -> float:
    return fmean(step.save_pretrained.num_bytes for step in steps)


def _baseline(steps: Sequence[StepFigures]) -> float:
    return median(step.save_pretrained.seconds for step in steps)


def _met(found: float, goal: float) -> str:
    return "met" if found <= goal else "missed"
