"""Figures of the checkpoint benchmark as Markdown, with their goals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, quantiles

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
    cpu_s: float
    """Seconds of all cores, the kernel's work for this process included."""


@dataclass(frozen=True, slots=True)
class Beside:
    """One state, published while the caller works."""

    blocked_s: float
    """In which the caller did not work."""
    seconds: float
    """What publishing and working took longer than working: standing still and slower work."""


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
    beside: Mapping[int, Beside]
    """dreamd, by the number of cores that the caller's work uses meanwhile."""


@dataclass(frozen=True, slots=True)
class RestoreFigures:
    """One checkpoint loaded into the trainer, every hash verified."""

    name: str
    num_bytes: int
    """Of the files that are read."""
    seconds: float


def report(steps: Sequence[StepFigures], restores: Sequence[RestoreFigures], work_s: float) -> str:
    """The whole report."""
    parts = [*_summary(steps), *_beside(steps, work_s), *_goals(steps), *_steps(steps), *_restores(restores)]
    return "\n".join(parts)


def _summary(steps: Sequence[StepFigures]) -> Iterator[str]:
    kept = fmean(step.image_bytes for step in steps)
    yield f"{len(steps)} steps; bytes: mean of the steps, seconds: median.\n"
    yield from _head(
        "after each step", "MiB written", "MiB kept", "kept / full copy", "CPU s", "seconds", "/ first line"
    )
    rows = [
        ("save_pretrained + fsync (weights)", [step.save_pretrained for step in steps], None),
        ("torch.distributed.checkpoint (weights, optimizer)", [step.dcp for step in steps], None),
        ("dreamd, nothing beside it (weights, optimizer, image)", [step.alone for step in steps], kept),
    ]
    for name, saved, kept_bytes in rows:
        written = fmean(one.num_bytes for one in saved)
        rest = written if kept_bytes is None else kept_bytes
        seconds, cpu_s = median(one.seconds for one in saved), median(one.cpu_s for one in saved)
        yield (
            f"| {name} | {written / _MIB:.2f} | {rest / _MIB:.2f} | {rest / _full_copy(steps):.2%} "
            f"| {cpu_s:.3f} | {seconds:.3f} | {seconds / _baseline(steps):.2f} |"
        )
    yield "\ndreamd keeps the exact state of the newest two beside that.\n"


def _beside(steps: Sequence[StepFigures], work_s: float) -> Iterator[str]:
    yield f"dreamd, beside {work_s:g} s of other work; longer: than that work alone, median and quartiles.\n"
    yield from _head(
        "cores that the work uses", "stands still, s", "/ save_pretrained", "longer, s", "/ save_pretrained"
    )
    for cores in steps[0].beside:
        still, longer = _still(steps, cores), [step.beside[cores].seconds for step in steps]
        quarters = quantiles(longer, n=4) if len(longer) > 1 else longer * 3
        yield (
            f"| {cores} | {still:.3f} | {still / _baseline(steps):.3f} "
            f"| {median(longer):.3f} ({quarters[0]:.3f} to {quarters[2]:.3f}) | {_longer(steps, cores):.2f} |"
        )
    yield ""


def _goals(steps: Sequence[StepFigures]) -> Iterator[str]:
    shares = [step.image_bytes / step.save_pretrained.num_bytes for step in steps]
    kept = f"kept per step: {fmean(shares):.2%} of a full copy, {max(shares):.2%} at most"
    yield f"- {kept}; goal: {GOAL_SIZE:.0%}: {_met(fmean(shares), GOAL_SIZE)}"
    for cores in steps[0].beside:
        work = "work on all cores" if cores == max(steps[0].beside) else "work that leaves a core"
        still, longer = _still(steps, cores) / _baseline(steps), _longer(steps, cores)
        yield f"- {work} stands still for {still:.3f} x save_pretrained + fsync; {_met_wait(still)}"
        yield f"- {work} takes {longer:.2f} x save_pretrained + fsync longer; {_met_wait(longer)}"
    yield ""


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


def _still(steps: Sequence[StepFigures], cores: int) -> float:
    return median(step.beside[cores].blocked_s for step in steps)


def _longer(steps: Sequence[StepFigures], cores: int) -> float:
    return median(step.beside[cores].seconds for step in steps) / _baseline(steps)


def _met_wait(found: float) -> str:
    return f"goal: {GOAL_WAIT:g} x: {_met(found, GOAL_WAIT)}"


def _met(found: float, goal: float) -> str:
    return "met" if found <= goal else "missed"
