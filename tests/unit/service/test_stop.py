"""The stop flag, by hand and by real signals in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from daemon.domain.errors import StopRequested
from daemon.service.stop import StopFlag

WAITS = """
import sys
from daemon.service.stop import StopFlag
stop = StopFlag()
with stop.handle_signals():
    print("ready", flush=True)
    for line in sys.stdin:
        print(stop.reason, flush=True)
print("restored", flush=True)
"""


def start() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def ask(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_an_unset_flag_lets_work_go_on() -> None:
    """Nothing is raised until somebody asks."""
    stop = StopFlag()
    stop.check()
    assert not stop.is_set
    assert stop.reason is None


def test_a_set_flag_raises_with_the_first_reason() -> None:
    """Every check raises from then on, and a later request does not replace the reason."""
    stop = StopFlag()
    stop.request("SIGTERM")
    stop.request("SIGINT")
    assert stop.reason == "SIGTERM"
    for _ in range(2):
        with pytest.raises(StopRequested, match="SIGTERM"):
            stop.check()


def test_listeners_hear_of_a_stop_once_also_when_they_come_late() -> None:
    """A listener is called on the first request, or at once when the request came before it."""
    stop, calls = StopFlag(), []
    stop.on_request(lambda: calls.append("early"))
    stop.request("SIGTERM")
    stop.request("SIGTERM")
    stop.on_request(lambda: calls.append("late"))
    assert calls == ["early", "late"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_real_signal_sets_the_flag_and_the_process_lives_on(number: signal.Signals) -> None:
    """SIGTERM and SIGINT are recorded by name; the process goes on and ends by itself."""
    with start() as process:
        assert ask(process) == "None"
        process.send_signal(number)
        assert ask(process) == number.name
        output, _ = process.communicate(timeout=30)
    assert output == "restored\n"
    assert process.returncode == 0


def test_a_second_sigint_interrupts_at_once() -> None:
    """The second Ctrl-C raises KeyboardInterrupt in the main thread."""
    with start() as process:
        process.send_signal(signal.SIGINT)
        assert ask(process) == "SIGINT"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    assert process.returncode != 0


def test_sigint_after_sigterm_is_the_first_sigint() -> None:
    """One Ctrl-C while a SIGTERM is being obeyed does not cut it short."""
    with start() as process:
        process.send_signal(signal.SIGTERM)
        assert ask(process) == "SIGTERM"
        process.send_signal(signal.SIGINT)
        assert ask(process) == "SIGTERM"
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_handlers_are_restored() -> None:
    """Outside the block the former handlers are back."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopFlag().handle_signals():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
