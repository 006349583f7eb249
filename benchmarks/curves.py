"""Draw a run's curves from its database: one panel per figure, cycles from left to right, several runs over another.

python -m benchmarks.curves --database var/dreamd.sqlite3 --run default --out docs/images/default.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.history import History, Points, read_history
from daemon.domain.errors import DreamdError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PIXELS = (1200, 1600)
_DPI = 100
_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")
_SOLID, _DASHED, _DOTTED = "-", "--", ":"


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of every run."""

    group: str
    """Field of `History`."""
    figure: str
    style: str
    label: str = ""
    """Within the panel; the run is told by the colour."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes."""

    title: str
    unit: str
    """Of the vertical axis."""
    lines: tuple[Line, ...]
    share: bool = False
    """Values are shares: the axis shows 0 to 1."""


PANELS = (
    Panel("Loss of the step", "nats per token", (Line("steps", "loss", _SOLID),)),
    Panel("Held-out NLL", "nats per token", (Line("probes", "nll", _SOLID),)),
    Panel(
        "Log-probability of answers",
        "nats per token",
        (
            Line("steps", "chosen_logprob", _SOLID, "chosen"),
            Line("steps", "rejected_logprob", _DASHED, "rejected"),
            Line("probes", "chosen_logp", _DOTTED, "held-out chosen"),
        ),
    ),
    Panel("Margin, chosen - rejected", "nats per token", (Line("steps", "margin", _SOLID),)),
    Panel(
        "Passed: accept",
        "share of answers",
        (Line("probes", "accept", _SOLID, "held-out, greedy"), Line("sweep", "accept", _DASHED, "sweep")),
        share=True,
    ),
    Panel(
        "Passed: push back",
        "share of answers",
        (Line("probes", "push_back", _SOLID, "held-out, greedy"), Line("sweep", "push_back", _DASHED, "sweep")),
        share=True,
    ),
    Panel("Update RMS / learning rate", "ratio", (Line("steps", "update_rms_over_lr", _SOLID),)),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw; returns the exit code."""
    options = _parser().parse_args(arguments)
    runs, labels = options.run, options.label or []
    if len(options.database) not in (1, len(runs)) or len(labels) not in (0, len(runs)):
        sys.stderr.write("curves: give --database once, or once per --run; and --label once per --run, or not at all\n")
        return 64
    databases = options.database * len(runs) if len(options.database) == 1 else options.database
    try:
        histories = [read_history(database, run) for database, run in zip(databases, runs, strict=True)]
    except DreamdError as error:
        sys.stderr.write(f"curves: {error}\n")
        return 1
    draw(dict(zip(labels or _distinct(runs), histories, strict=True)), options.out)
    return 0


def draw(histories: dict[str, History], out: Path) -> None:
    """Write a PNG of 1200 x 1600 pixels.

    Args:
        histories: label -> run; each has its colour.
        out: the file; its folder is made.
    """
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(
        4, 2, figsize=(PIXELS[0] / _DPI, PIXELS[1] / _DPI), sharex=True, layout="constrained"
    )
    axes: list[Any] = list(grid.flat)
    for panel, panel_axes in zip(PANELS, axes, strict=False):
        _draw_panel(panel_axes, panel, histories)
    _draw_legend(axes[len(PANELS)], histories)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=_DPI)
    pyplot.close(figure)


def _draw_panel(axes: Axes, panel: Panel, histories: dict[str, History]) -> None:
    from matplotlib.ticker import MaxNLocator

    for number, history in enumerate(histories.values()):
        colour = _COLOURS[number % len(_COLOURS)]
        for line in panel.lines:
            points: Points = getattr(history, line.group)[line.figure]
            axes.plot(
                [cycle for cycle, _ in points],
                [value for _, value in points],
                line.style,
                color=colour,
                marker=".",
                # Each style once; which colour is which run says the last panel.
                label=line.label if number == 0 and line.label else None,
            )
        for cycle in history.rolled_back:
            axes.axvline(cycle, color=colour, linestyle=_DOTTED, linewidth=0.8, alpha=0.5)
    axes.set_title(panel.title)
    axes.set_xlabel("cycle")
    axes.set_ylabel(panel.unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelbottom=True)
    axes.grid(alpha=0.3)
    if panel.share:
        axes.set_ylim(-0.03, 1.03)
    if any(line.label for line in panel.lines):
        for handle in axes.legend(fontsize="small").legend_handles:
            if handle is not None:
                handle.set(color="0.2")  # a style of line here, not a run


def _draw_legend(axes: Axes, histories: dict[str, History]) -> None:
    axes.set_axis_off()
    for number, label in enumerate(histories):
        axes.plot([], [], color=_COLOURS[number % len(_COLOURS)], linewidth=4, label=label)
    axes.legend(loc="upper left", fontsize="large", title="Runs", alignment="left")
    axes.text(
        0.02,
        0.05,
        "Cycle 0 is the base model.\n"
        "Loss, log-probabilities and margin of a step, and the\n"
        "sweep's answers, are of the model before that step;\n"
        "held-out figures are of the model after it.\n"
        "Dotted vertical lines: cycles that were rolled back.",
        transform=axes.transAxes,
        va="bottom",
    )


def _distinct(runs: Sequence[str]) -> list[str]:
    return [run if runs.count(run) == 1 else f"{run} ({number})" for number, run in enumerate(runs, start=1)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--database", action="append", required=True, help="URL or SQLite file; once, or once per --run; read only"
    )
    parser.add_argument("--run", action="append", required=True, help="name of a run; again for another line")
    parser.add_argument("--label", action="append", help="what to call the run in the picture; once per --run")
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
