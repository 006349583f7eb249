"""How far a stage is: bars on a terminal, a line now and then anywhere else. Both write to stderr."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

_LINE_EVERY_S = 5.0


class TerminalProgress:
    """A bar per stage while it works, and one line of its seconds when it is done."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._progress: Progress | None = None
        self._tasks: list[tuple[TaskID, str, float]] = []

    def start(self, stage: str) -> None:
        if self._progress is None:
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description:<10}"),
                BarColumn(bar_width=32),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._progress.start()
        self._tasks.append((self._progress.add_task(stage, total=None), stage, self._clock()))

    def update(self, done: int, total: int) -> None:
        if self._progress is not None and self._tasks:
            self._progress.update(self._tasks[-1][0], completed=done, total=total)

    def finish(self) -> None:
        if self._progress is None or not self._tasks:
            return
        task, stage, started = self._tasks.pop()
        self._progress.remove_task(task)
        self._console.print(
            f"  {stage:<10} {self._clock() - started:7.1f} s", style="dim", markup=False, highlight=False
        )
        if not self._tasks:
            self.close()

    def close(self) -> None:
        """Take the bars down and give the cursor back; safe to call at any time, from any thread."""
        progress, self._progress = self._progress, None
        if progress is not None:
            progress.stop()


class LineProgress:
    """At most a line every five seconds, for logs and pipes."""

    def __init__(self, write: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._stages: list[tuple[str, float]] = []
        self._last = 0.0

    def start(self, stage: str) -> None:
        now = self._last = self._clock()
        self._stages.append((stage, now))

    def update(self, done: int, total: int) -> None:
        now = self._clock()
        if self._stages and now - self._last >= _LINE_EVERY_S:
            self._last = now
            stage, started = self._stages[-1]
            self._write(f"  {stage}: {done}/{total}, {now - started:.0f} s")

    def finish(self) -> None:
        if self._stages:
            stage, started = self._stages.pop()
            self._write(f"  {stage}: done, {self._clock() - started:.1f} s")

    def close(self) -> None: ...


def make_progress(console: Console) -> TerminalProgress | LineProgress:
    """Bars where `console` is a terminal, else lines on it."""
    if console.is_terminal:
        return TerminalProgress(console)
    return LineProgress(lambda line: console.print(line, markup=False))
