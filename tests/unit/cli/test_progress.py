"""Progress with and without a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from daemon.cli.progress import LineProgress, TerminalProgress, make_progress


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_a_line_comes_every_five_seconds() -> None:
    """Many updates make few lines, and the end is always said with its seconds."""
    lines: list[str] = []
    clock = Clock()
    progress = LineProgress(lines.append, clock=clock)
    progress.start("sweep")
    for done in range(1, 13):
        clock.now += 1.0
        progress.update(done, 12)
    progress.finish()
    assert lines == ["  sweep: 5/12, 5 s", "  sweep: 10/12, 10 s", "  sweep: done, 12.0 s"]


def test_a_stage_within_a_stage_ends_first() -> None:
    """Each finish belongs to the newest start; one too many is harmless."""
    lines: list[str] = []
    progress = LineProgress(lines.append, clock=Clock())
    progress.start("probe")
    progress.start("engine")
    for _ in range(3):
        progress.finish()
    assert [line.split(":")[0].strip() for line in lines] == ["engine", "probe"]


def test_on_a_terminal_the_bar_goes_and_the_seconds_stay() -> None:
    """The last thing printed is the stage with its seconds; the cursor comes back."""
    stream = io.StringIO()
    clock = Clock()
    progress = TerminalProgress(Console(file=stream, force_terminal=True, width=100), clock=clock)
    progress.start("sweep")
    progress.update(3, 10)
    clock.now += 2.5
    progress.finish()
    progress.close()
    written = stream.getvalue()
    assert "2.5 s" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


def test_close_in_the_middle_gives_the_cursor_back() -> None:
    """An interrupted stage leaves a usable terminal, and later calls do no harm."""
    stream = io.StringIO()
    progress = TerminalProgress(Console(file=stream, force_terminal=True, width=100))
    progress.start("sweep")
    progress.close()
    progress.update(1, 2)
    progress.finish()
    assert stream.getvalue().count("\x1b[?25h") == 1


def test_the_stream_decides() -> None:
    """A terminal gets bars, anything else lines."""
    assert isinstance(make_progress(Console(file=io.StringIO())), LineProgress)
    assert isinstance(make_progress(Console(file=io.StringIO(), force_terminal=True)), TerminalProgress)
