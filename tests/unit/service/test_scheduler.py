"""The loop, with cycles that are plain functions."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from daemon.cycle.guard import Pause
from daemon.domain.errors import BreakerOpenError, EngineError, StopRequested
from daemon.domain.states import Outcome
from daemon.service.notify import Notifier
from daemon.service.scheduler import Service
from daemon.service.stop import StopFlag


class Work:
    """Records what runs, in which thread, and fails when two things run at once."""

    def __init__(self, in_cycle: Callable[[int], None] = lambda number: None) -> None:
        self.calls: list[str] = []
        self.threads: set[int] = set()
        self._busy = threading.Lock()
        self._in_cycle = in_cycle
        self._num_cycles = 0

    def setup(self) -> None:
        self._record("setup")

    def cycle(self) -> Outcome:
        with_lock = self._busy.acquire(blocking=False)
        assert with_lock, "two cycles overlap"
        try:
            self._num_cycles += 1
            self._record("cycle")
            self._in_cycle(self._num_cycles)
        finally:
            self._busy.release()
        return Outcome.PROMOTED

    def teardown(self) -> None:
        self._record("teardown")

    def _record(self, call: str) -> None:
        self.calls.append(call)
        self.threads.add(threading.get_ident())


def service(work: Work, stop: StopFlag, *, interval_s: float = 0.0, cycles: int | None = None) -> Service:
    return Service(work.cycle, stop, interval_s, cycles, setup=work.setup, teardown=work.teardown)


class StatusRecorder(Notifier):
    """A notifier that keeps what it was told."""

    def __init__(self) -> None:
        super().__init__(None)
        self.sent: list[str] = []

    def stopping(self) -> None:
        self.sent.append("stopping")

    def status(self, text: str) -> None:
        self.sent.append(text)


class AliveRecorder(Notifier):
    """A manager that waits for a sign of life each few milliseconds; counts them."""

    def __init__(self) -> None:
        super().__init__(None, watchdog_s=0.04)
        self.signs = 0
        self.heard = threading.Event()

    def alive(self) -> None:
        self.signs += 1
        self.heard.set()


def test_waiting_is_a_sign_of_life_and_a_cycle_that_hangs_is_not() -> None:
    """Idle for an hour's interval, the main thread says it is alive; while a cycle stands still, nobody does."""
    stop, notifier = StopFlag(), AliveRecorder()
    during: list[int] = []

    def stand_still() -> Outcome:
        before = notifier.signs
        threading.Event().wait(0.5)
        during.append(notifier.signs - before)
        notifier.heard.clear()
        return Outcome.PROMOTED

    def ask() -> None:
        while not during:
            threading.Event().wait(0.01)
        heard.append(notifier.heard.wait(30))
        stop.request("SIGTERM")

    heard: list[bool] = []
    asker = threading.Thread(target=ask)
    asker.start()
    assert Service(stand_still, stop, 3600.0, None, notifier=notifier).run() == 1
    asker.join()
    assert (during, heard) == ([0], [True])


@pytest.mark.parametrize("interval_s", [0.0, 0.001])
def test_it_runs_exactly_the_asked_number_of_cycles_in_one_worker_thread(interval_s: float) -> None:
    """Setup, five cycles, teardown, in this order, all in one thread that is not the caller's."""
    work = Work()
    assert service(work, StopFlag(), interval_s=interval_s, cycles=5).run() == 5
    assert work.calls == ["setup", *["cycle"] * 5, "teardown"]
    assert len(work.threads) == 1
    assert threading.get_ident() not in work.threads


def test_a_late_cycle_is_followed_by_one_cycle_not_by_all_it_made_late() -> None:
    """With every cycle ten intervals long they come back to back, one at a time, and the count is kept."""
    clock = [0.0]

    def take_long(number: int) -> None:
        clock[0] += 36000.0

    work = Work(take_long)
    loop = Service(work.cycle, StopFlag(), 3600.0, 4, setup=work.setup, teardown=work.teardown, clock=lambda: clock[0])
    assert loop.run() == 4
    assert work.calls == ["setup", *["cycle"] * 4, "teardown"]


def test_an_error_in_a_cycle_ends_the_loop_and_reaches_the_caller() -> None:
    """The very exception is raised from run, after the teardown, and no further cycle starts."""

    def fail(number: int) -> None:
        if number == 2:
            raise EngineError("the engine is gone")

    work = Work(fail)
    with pytest.raises(EngineError, match="the engine is gone"):
        service(work, StopFlag(), cycles=5).run()
    assert work.calls == ["setup", "cycle", "cycle", "teardown"]


def test_an_error_in_setup_ends_it_before_any_cycle() -> None:
    """Setup's exception is raised, and teardown still gets its chance to free what setup made."""
    calls = []

    def setup() -> None:
        raise EngineError("no engine")

    loop = Service(lambda: Outcome.PROMOTED, StopFlag(), 0.0, 3, setup=setup, teardown=lambda: calls.append("teardown"))
    with pytest.raises(EngineError, match="no engine"):
        loop.run()
    assert calls == ["teardown"]


def test_an_error_in_teardown_does_not_hide_the_first_one() -> None:
    """The cycle's error is raised, with the teardown's as a note; alone, the teardown's is raised itself."""

    def fail() -> Outcome:
        raise EngineError("first")

    def teardown() -> None:
        raise OSError("second")

    with pytest.raises(EngineError, match="first") as caught:
        Service(fail, StopFlag(), 0.0, None, teardown=teardown).run()
    assert "second" in caught.value.__notes__[0]
    with pytest.raises(OSError, match="second"):
        Service(lambda: Outcome.PROMOTED, StopFlag(), 0.0, 1, teardown=teardown).run()


def test_a_stop_raised_by_a_cycle_ends_the_loop_cleanly() -> None:
    """StopRequested is no failure; the interrupted cycle does not count as finished."""

    def give_way(number: int) -> None:
        if number == 3:
            raise StopRequested("SIGTERM")

    work = Work(give_way)
    assert service(work, StopFlag()).run() == 2
    assert work.calls[-1] == "teardown"


def test_a_stop_while_a_cycle_works_lets_it_finish() -> None:
    """A cycle that does not give way is waited for, counts, and is the last one; the manager hears of it."""
    stop, notifier = StopFlag(), StatusRecorder()
    work = Work(lambda number: stop.request("SIGTERM"))
    loop = Service(work.cycle, stop, 0.0, None, setup=work.setup, teardown=work.teardown, notifier=notifier)
    assert loop.run() == 1
    assert work.calls == ["setup", "cycle", "teardown"]
    assert "stopping" in notifier.sent


def test_a_stop_between_cycles_does_not_wait_for_the_interval() -> None:
    """Idle for an hour's interval, it ends at once, teardown included."""
    stop = StopFlag()
    finished = threading.Event()
    work = Work(lambda number: finished.set())

    def ask() -> None:
        finished.wait(30)
        stop.request("SIGTERM")

    asker = threading.Thread(target=ask)
    asker.start()
    assert service(work, stop, interval_s=3600.0).run() == 1
    asker.join()
    assert work.calls == ["setup", "cycle", "teardown"]


def test_a_stop_that_came_before_the_start_runs_no_cycle() -> None:
    """Nothing is begun that would only be abandoned."""
    stop = StopFlag()
    stop.request("SIGTERM")
    work = Work()
    assert service(work, stop).run() == 0
    assert "cycle" not in work.calls


SIGNALLED = """
import sys, threading
from daemon.service.scheduler import Service
from daemon.service.stop import StopFlag
from daemon.domain.states import Outcome
stop = StopFlag()
release = threading.Event()
def cycle():
    print("working", flush=True)
    while not stop.is_set:      # a stage in native code: it neither looks at signals nor at the main thread
        release.wait(0.01)
    return Outcome.PROMOTED
with stop.handle_signals():
    print(Service(cycle, stop, 0.0, None).run(), stop.reason, flush=True)
"""


def test_the_main_thread_handles_signals_while_the_worker_works() -> None:
    """A real SIGTERM during a cycle ends the process cleanly after that cycle."""
    command = [sys.executable, "-c", SIGNALLED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert output.endswith("1 SIGTERM\n")
    assert process.returncode == 0


class Waiting:
    """A cycle function that must wait a number of times before it may run."""

    def __init__(self, pauses: int, stop: StopFlag, reason: str = "2 rollbacks in a row") -> None:
        self.asked = 0
        self._reason = reason
        self._pauses = pauses
        self._stop = stop

    def __call__(self) -> Outcome | Pause:
        self.asked += 1
        if self.asked <= self._pauses:
            return Pause(0.001, self._reason)
        self._stop.request("enough")
        return Outcome.PROMOTED


def test_an_open_breaker_keeps_the_service_up_and_is_said() -> None:
    """Three refusals, then a cycle: the loop asked four times, counted one cycle, and said why it waited."""
    stop, notifier = StopFlag(), StatusRecorder()
    waiting = Waiting(3, stop)
    assert Service(waiting, stop, 0.0, None, notifier=notifier).run() == 1
    assert waiting.asked == 4
    assert notifier.sent[:3] == ["paused: 2 rollbacks in a row"] * 3


def test_an_open_breaker_ends_a_run_of_so_many_cycles() -> None:
    """With a number of cycles asked for, waiting looks like hanging: it ends with the reason and, once, the way out."""
    reason = "2 rollbacks in a row; waiting until 2026-11-22 22:10 UTC or `dreamd breaker ack --reason TEXT`"
    with pytest.raises(BreakerOpenError) as caught:
        Service(Waiting(1, StopFlag(), reason), StopFlag(), 0.0, 3).run()
    assert caught.value.exit_code == 69
    assert str(caught.value) == f"nothing is trained: {reason}"
