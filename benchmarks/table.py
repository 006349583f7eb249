"""The benchmark's figures as Markdown, every ratio beside its goal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.measure import Measured, OptimizerFigures

TIME_GOALS: Mapping[str, Mapping[str, float]] = {
    "full": {"1:1": 1.3, "4:1": 1.5, "16:1": 1.8},
    "frozen": {"1:1": 1.6, "4:1": 2.8, "16:1": 4.5},
}
"""Gradient scope -> prompt:response -> TRL's seconds over dreamd's, at least."""
MEMORY_GOALS: Mapping[str, float] = {"4:1": 2.0}
"""prompt:response -> TRL's peak over dreamd's, at least."""
STATE_GOALS: Mapping[str, float] = {"APOLLO, rank 64": 1 / 4, "APOLLO-Mini": 1 / 20}
"""Optimizer -> its state over AdamW's, below this."""
OPTIMIZER_TIME_GOAL = 1.2
"""APOLLO's step over AdamW's, at most."""
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class StepFigures:
    """One peer at one shape."""

    shape: str
    """prompt:response."""
    peer: str
    scope: str | None
    """Whose goals apply: a key of `TIME_GOALS`, or None for no goal."""
    memory: Measured
    """The step whose peak memory was taken; its time does not count."""
    steps: Sequence[Measured]
    """The steps that were timed."""

    @property
    def seconds(self) -> float:
        return median(step.seconds for step in self.steps)

    @property
    def peak_bytes(self) -> int:
        return self.memory.peak_bytes or 0

    @property
    def working_bytes(self) -> int:
        """What the step needed above weights, optimizer state and libraries."""
        return self.peak_bytes - (self.memory.resting_bytes or 0)


def step_table(rows: Sequence[StepFigures]) -> str:
    """One line per shape and peer; the first peer of each shape is the one that the others are compared with."""
    reference: dict[str, StepFigures] = {}
    lines = []
    for row in rows:
        base = reference.setdefault(row.shape, row)
        lines.append(_step_line(row, None if base is row else base))
    head = ["prompt:response", "step", "seconds", "(min-max)", "TRL / this", "goal"]
    head += ["peak MiB", "TRL / this", "above rest MiB", "TRL / this", "goal (peak / above rest)"]
    return _markdown(head, lines)


def loss_table(rows: Iterable[tuple[str, float, float]]) -> str:
    """Equality of the losses.

    Args:
        rows: (prompt:response, TRL's loss, dreamd's loss).
    """
    lines = [[shape, f"{trl:.6f}", f"{ours:.6f}", f"{abs(trl - ours):.1e}"] for shape, trl, ours in rows]
    return _markdown(["prompt:response", "TRL's loss", "dreamd's loss", "difference"], lines)


def optimizer_table(rows: Sequence[OptimizerFigures]) -> str:
    """One line per optimizer; the first two, fused and default AdamW, are what the others are compared with."""
    fused, default = rows[0], rows[1]
    lines = []
    for row in rows:
        state = row.state_bytes / fused.state_bytes
        times = [row.seconds / base.seconds for base in (fused, default)]
        cells = [row.name, f"{row.state_bytes / _MIB:.2f}", f"{state:.4f}"]
        goal = STATE_GOALS.get(row.name)
        cells.append("" if goal is None else f"< {goal:g} {_verdict(state < goal)}")
        cells += [f"{row.seconds:.3f}", *(f"{time:.2f}" for time in times)]
        verdicts = " / ".join(_verdict(time <= OPTIMIZER_TIME_GOAL) for time in times)
        cells.append("" if goal is None else f"<= {OPTIMIZER_TIME_GOAL:g} {verdicts}")
        lines.append(cells)
    head = ["optimizer", "state MiB", "of AdamW's", "goal", "seconds", "of fused AdamW's", "of default AdamW's"]
    return _markdown([*head, "goal"], lines)


def parts_table(rows: Sequence[StepFigures]) -> str:
    """Where the time of each peer goes, for those that tell: medians, in seconds."""
    parts = list(dict.fromkeys(part for row in rows for step in row.steps for part in step.parts))
    lines = []
    for row in rows:
        if all(step.parts for step in row.steps):
            seconds = [median(step.parts.get(part, 0.0) for step in row.steps) for part in parts]
            rest = max(row.seconds - sum(seconds), 0.0)
            lines.append([row.shape, row.peer, *(f"{value:.2f}" for value in (*seconds, rest))])
    return _markdown(["prompt:response", "step", *parts, "other"], lines)


def _step_line(row: StepFigures, base: StepFigures | None) -> list[str]:
    seconds = [step.seconds for step in row.steps]
    spread = f"{min(seconds):.2f}-{max(seconds):.2f}"
    peak, working = f"{row.peak_bytes / _MIB:.0f}", f"{row.working_bytes / _MIB:.0f}"
    if base is None:
        return [row.shape, row.peer, f"{row.seconds:.2f}", spread, "1", "", peak, "1", working, "1", ""]
    faster = base.seconds / row.seconds
    smaller = base.peak_bytes / row.peak_bytes
    less_work = base.working_bytes / max(row.working_bytes, 1)
    time_goal = TIME_GOALS[row.scope].get(row.shape) if row.scope else None
    memory_goal = MEMORY_GOALS.get(row.shape) if row.scope else None
    return [
        row.shape,
        row.peer,
        f"{row.seconds:.2f}",
        spread,
        f"{faster:.2f}",
        "" if time_goal is None else f">= {time_goal:g} {_verdict(faster >= time_goal)}",
        peak,
        f"{smaller:.2f}",
        working,
        f"{less_work:.2f}",
        ""
        if memory_goal is None
        else f">= {memory_goal:g} {_verdict(smaller >= memory_goal)} / {_verdict(less_work >= memory_goal)}",
    ]


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in (head, *lines)) for column in range(len(head))]
    rows = [head, ["-" * width for width in widths], *lines]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )
